"""What the service of a package offers: the ways to ask, the routes, and the runtime behind them."""

import json
from functools import cached_property, partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from deploykit.artifact import MODEL_CARD, Artifact
from deploykit.serving.api import explain, feedback, openapi, page, protocols
from deploykit.serving.api.openapi import Way
from deploykit.serving.api.protocols import Protocol
from deploykit.serving.call import Call
from deploykit.serving.http import routes
from deploykit.serving.http.routes import Answer, Route
from deploykit.serving.model import MakeBatcher, make_batcher
from deploykit.serving.problems import NOT_READY, Problem
from deploykit.serving.runtime import Runtime
from deploykit.serving.settings import Settings
from deploykit.tasks import Task


class Offer:
    """Everything that can be asked of a package; nothing is loaded before `runtime` is.

    Args:
        settings: what the process is told.
        artifact: the package.
        task: of its model.
        make_batcher: makes the queue in front of the engine.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, task: Task, make_batcher: MakeBatcher = make_batcher
    ) -> None:
        self.settings, self.artifact, self.manifest, self.task = settings, artifact, artifact.manifest, task
        self._make_batcher = make_batcher

    @cached_property
    def runtime(self) -> Runtime:
        """What the process serves with."""
        labels = [route.label for route in (*self.table, routes.UNKNOWN)]
        return Runtime(self.settings, self.artifact, labels, self._make_batcher)

    @cached_property
    def asked(self) -> tuple[Protocol, ...]:
        """The ways to ask for predictions, our own first."""
        manifest, task = self.manifest, self.task
        return (
            *(protocols.predict(manifest, task), protocols.infer(manifest, task), protocols.pipeline(manifest, task)),
            *explain.explain(manifest, task),
        )

    @cached_property
    def feedback(self) -> type[BaseModel] | None:
        """The type of feedback; None where none is taken."""
        taken = self.settings.recording and "label" in self.task.Answer.model_fields
        return feedback.request_model(self.manifest) if taken else None

    @cached_property
    def table(self) -> tuple[Route, ...]:
        """Every route."""
        asked = [self._route(way) for way in self.asked]
        kept = [Route(feedback.PATH, "POST", "predict", self.feedback, self.correct)] if self.feedback else []
        described = Route(routes.DOCS, scope="docs", page=lambda: self.description)
        return routes.table(asked, (*self._pages(), *page.pages(self.artifact, self.task), *kept, described))

    def _route(self, way: Protocol) -> Route:
        answer = self.answering(way)
        return Route(way.path, "POST", way.scope, way.request, answer, binary=way.binary, waits=True, also=way.also)

    def answering(self, protocol: Protocol) -> Answer:
        """Returns what answers in a protocol."""
        return partial(self._answer, protocol)

    async def correct(self, asked: Any, call: Call) -> Any:
        """Takes feedback."""
        return feedback.take(asked, call, self.runtime.records)

    @property
    def card(self) -> str:
        """The model card."""
        file = self.artifact.file(MODEL_CARD)
        return file.read_text(encoding="utf-8") if file.is_file() else self.manifest.name

    async def _answer(self, protocol: Protocol, asked: Any, call: Call) -> Any:
        found = await self.runtime.predict(*protocol.read(asked), call, counted=protocol.counted)
        return await self.runtime.offload.run(call.large, protocol.write, asked, found)

    def _pages(self) -> tuple[Route, ...]:
        """Lists what is rendered by the guard itself: the metrics, and what the Open Inference Protocol tells."""
        model, version = protocols.model_paths(self.manifest)
        return (
            Route(routes.METRICS, scope="metrics", page=lambda: self.runtime.page(), media=CONTENT_TYPE_LATEST),
            Route("/v2", scope="predict", page=protocols.server_metadata),
            Route("/v2/health/live", page=self._live),
            Route("/v2/health/ready", page=self._ready),
            Route(model, "GET", "predict", page=self._metadata, also=(version,)),
            Route(f"{model}/ready", page=self._ready, also=(f"{version}/ready",)),
        )

    def _metadata(self) -> bytes:
        return protocols.model_metadata(self.manifest, self.task)

    def _ready(self) -> bytes:
        if not self.runtime.ready:
            raise Problem(503, "not_ready", NOT_READY)
        return json.dumps({"name": self.manifest.name, "ready": True}).encode()

    def _live(self) -> bytes:
        if not self.runtime.alive:
            raise Problem(503, "not_ready", "the engine does not come back with a batch")
        return json.dumps({"live": True}).encode()

    @cached_property
    def description(self) -> bytes:
        """The description of the API; it takes long to make."""
        ways = [Way(way.name, way.path, way.request, way.response) for way in self.asked]
        if self.feedback:
            ways.append(Way("feedback", feedback.PATH, self.feedback, feedback.FeedbackResponse))
        manifest, guarded = self.manifest, self.settings.keys is not None
        version = manifest.version
        return openapi.document(manifest.name, version, self.card, ways, self.table, guarded=guarded)
