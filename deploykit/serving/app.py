"""The service of a package without BentoML: its protocols, its routes, and the runtime behind them."""

import json
from functools import cached_property, partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from deploykit.artifact import MODEL_CARD, Artifact
from deploykit.serving.api import explain, feedback, open_inference, openapi, page, protocols, ranking
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


class Application:
    """The protocols and routes of a package; it loads the model only with `runtime.start()`.

    Args:
        settings: of the process.
        artifact: the package.
        task: of its model.
        make_batcher: makes the queue for the engine.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, task: Task, make_batcher: MakeBatcher = make_batcher
    ) -> None:
        self.settings, self.artifact, self.manifest, self.task = settings, artifact, artifact.manifest, task
        self._make_batcher = make_batcher

    @cached_property
    def runtime(self) -> Runtime:
        """The model and what is around it."""
        labels = [route.path for route in (*self.table, routes.UNKNOWN)]
        return Runtime(self.settings, self.artifact, labels, self._make_batcher)

    @cached_property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols of predictions, our own first."""
        manifest, task = self.manifest, self.task
        return (
            *(
                protocols.predict(manifest, task),
                open_inference.infer(manifest, task),
            ),
            *((protocols.pipeline(manifest, task),) if "pipeline" in task.CAPABILITIES else ()),
            *ranking.rank(manifest, task),
            *explain.explain(manifest, task),
        )

    @cached_property
    def feedback(self) -> type[BaseModel] | None:
        """The body of feedback; None if the service accepts none."""
        accepted = self.settings.recording and "feedback" in self.task.CAPABILITIES
        return feedback.request_model(self.manifest) if accepted else None

    @cached_property
    def table(self) -> tuple[Route, ...]:
        """Every route."""
        predictions = [self._route(protocol) for protocol in self.protocols]
        pages = [*self._pages(), *page.pages(self.artifact, self.task)]
        if self.feedback:
            pages.append(Route(feedback.PATH, "POST", "predict", self.feedback, self.take_feedback))
        pages.append(Route(routes.DOCS, scope="docs", page=lambda: self.description))
        return routes.table(predictions, pages)

    def _route(self, protocol: Protocol) -> Route:
        answer, binary, also = self.answer_in(protocol), protocol.binary, protocol.also
        kind, files = protocol.request, protocol.from_files
        return Route(
            protocol.path, "POST", protocol.scope, kind, answer, binary, waits=True, also=also, from_files=files
        )

    def answer_in(self, protocol: Protocol) -> Answer:
        """Returns the function that answers requests in a protocol."""
        return partial(self._answer, protocol)

    async def take_feedback(self, body: Any, call: Call) -> Any:
        """Records feedback."""
        return feedback.take(body, call, self.runtime.records)

    @property
    def card(self) -> str:
        """The model card."""
        file = self.artifact.file(MODEL_CARD)
        return file.read_text(encoding="utf-8") if file.is_file() else self.manifest.name

    async def _answer(self, protocol: Protocol, body: Any, call: Call) -> Any:
        answers = await self.runtime.predict(protocol.read(body), call, counted=protocol.counted)
        return await self.runtime.offload.run(call.large, protocol.write, body, answers)

    def _pages(self) -> tuple[Route, ...]:
        """Lists the pages that the guard renders: the metrics, and the metadata of the Open Inference Protocol."""
        model, version = open_inference.model_paths(self.manifest)
        return (
            Route(routes.METRICS, scope="metrics", page=lambda: self.runtime.page(), media=CONTENT_TYPE_LATEST),
            Route("/v2", scope="predict", page=open_inference.server_metadata),
            Route("/v2/health/live", page=self._live),
            Route("/v2/health/ready", page=self._ready),
            Route(model, "GET", "predict", page=self._metadata, also=(version,)),
            Route(f"{model}/ready", page=self._ready, also=(f"{version}/ready",)),
        )

    def _metadata(self) -> bytes:
        return open_inference.model_metadata(self.manifest, self.task)

    def _ready(self) -> bytes:
        if not self.runtime.ready:
            raise Problem(503, "not_ready", NOT_READY)
        return json.dumps({"name": self.manifest.name, "ready": True}).encode()

    def _live(self) -> bytes:
        if not self.runtime.alive:
            raise Problem(503, "not_ready", "the engine does not finish its batch")
        return json.dumps({"live": True}).encode()

    @cached_property
    def description(self) -> bytes:
        """The OpenAPI document; made once, because that takes long."""
        ways = [Way(each.name, each.path, each.request, each.response) for each in self.protocols]
        if self.feedback:
            ways.append(Way("feedback", feedback.PATH, self.feedback, feedback.FeedbackResponse))
        manifest, guarded = self.manifest, self.settings.keys is not None
        return openapi.document(manifest.name, manifest.version, self.card, ways, self.table, guarded=guarded)
