"""The service of a package, apart from BentoML: its protocols, its routes, and the runtime that answers them."""

import json
from functools import cached_property, partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from deploykit.artifact import MODEL_CARD, Artifact
from deploykit.serving.api import explain, feedback, open_inference, openapi, page, protocols, ranking
from deploykit.serving.api.openapi import Operation
from deploykit.serving.api.protocols import Protocol
from deploykit.serving.call import Call
from deploykit.serving.http.routes import DOCS_PATH, METRICS_PATH, UNKNOWN_ROUTE, Answer, Route, all_routes
from deploykit.serving.model import MakeBatcher, make_batcher
from deploykit.serving.problems import NOT_READY_DETAIL, Problem
from deploykit.serving.runtime import Runtime
from deploykit.serving.settings import Settings
from deploykit.tasks import Task


class Application:
    """The protocols and routes of a package. The model is loaded only by `runtime.start()`.

    Args:
        settings: of the process.
        artifact: the package.
        task: of the model.
        make_batcher: makes the queue for the engine.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, task: Task, make_batcher: MakeBatcher = make_batcher
    ) -> None:
        self.settings, self.artifact, self.manifest, self.task = settings, artifact, artifact.manifest, task
        self._make_batcher = make_batcher

    @cached_property
    def runtime(self) -> Runtime:
        """The model, access control and metrics of the process; made at first use."""
        labels = [route.path for route in (*self.routes, UNKNOWN_ROUTE)]
        return Runtime(self.settings, self.artifact, labels, self._make_batcher)

    @cached_property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that the model and its task support; that of `POST /v1/predict` is the first."""
        manifest, task = self.manifest, self.task
        return (
            protocols.predict_protocol(manifest, task),
            open_inference.infer_protocol(manifest, task),
            *((protocols.pipeline_protocol(manifest, task),) if "pipeline" in task.CAPABILITIES else ()),
            *ranking.rank_protocols(manifest, task),
            *explain.explain_protocols(manifest, task),
        )

    @cached_property
    def feedback_body(self) -> type[BaseModel] | None:
        """The type of the body of feedback; None if the service accepts no feedback."""
        accepted = self.settings.recording and "feedback" in self.task.CAPABILITIES
        return feedback.request_model(self.manifest) if accepted else None

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """All routes of the service."""
        predictions = [self._prediction_route(protocol) for protocol in self.protocols]
        others = [*self._rendered_routes(), *page.page_routes(self.artifact, self.task)]
        if self.feedback_body:
            others.append(Route(feedback.PATH, "POST", "predict", self.feedback_body, self.take_feedback))
        others.append(Route(DOCS_PATH, scope="docs", render=lambda: self.openapi_document))
        return all_routes(predictions, others)

    def _prediction_route(self, protocol: Protocol) -> Route:
        """Makes the route of a protocol."""
        return Route(
            protocol.path,
            "POST",
            protocol.scope,
            protocol.request,
            self.answer_function(protocol),
            protocol.binary,
            uses_engine=True,
            other_paths=protocol.other_paths,
            from_files=protocol.from_files,
        )

    def answer_function(self, protocol: Protocol) -> Answer:
        """Returns the function that answers the bodies of a protocol."""
        return partial(self._answer, protocol)

    async def take_feedback(self, body: Any, call: Call) -> Any:
        """Records feedback; answers whether that was possible."""
        return feedback.take(body, call, self.runtime.records)

    @property
    def card(self) -> str:
        """The model card in Markdown; the name of the package if it has none."""
        file = self.artifact.file(MODEL_CARD)
        return file.read_text(encoding="utf-8") if file.is_file() else self.manifest.name

    async def _answer(self, protocol: Protocol, body: Any, call: Call) -> Any:
        """Answers a body of a protocol; returns the content of the response."""
        answers = await self.runtime.predict(protocol.read(body), call, counted=protocol.counted)
        return await self.runtime.offload.run(call.large, protocol.write, body, answers)

    def _rendered_routes(self) -> tuple[Route, ...]:
        """Lists the routes of the metrics, and of the states and metadata of the Open Inference Protocol."""
        model, version = open_inference.model_paths(self.manifest)
        return (
            Route(METRICS_PATH, scope="metrics", render=lambda: self.runtime.page(), media_type=CONTENT_TYPE_LATEST),
            Route("/v2", scope="predict", render=open_inference.server_metadata),
            Route("/v2/health/live", render=self._live_state),
            Route("/v2/health/ready", render=self._ready_state),
            Route(model, "GET", "predict", render=self._model_metadata, other_paths=(version,)),
            Route(f"{model}/ready", render=self._ready_state, other_paths=(f"{version}/ready",)),
        )

    def _model_metadata(self) -> bytes:
        """Returns the metadata of the model, in JSON."""
        return open_inference.model_metadata(self.manifest, self.task)

    def _ready_state(self) -> bytes:
        """Returns that the model is ready, in JSON; raises a problem (503) if it is not."""
        if not self.runtime.ready:
            raise Problem(503, "not_ready", NOT_READY_DETAIL)
        return json.dumps({"name": self.manifest.name, "ready": True}).encode()

    def _live_state(self) -> bytes:
        """Returns that the process is alive, in JSON; raises a problem (503) if the engine hangs."""
        if not self.runtime.alive:
            raise Problem(503, "not_ready", "the engine does not finish its batch")
        return json.dumps({"live": True}).encode()

    @cached_property
    def openapi_document(self) -> bytes:
        """The OpenAPI document in JSON; made once, because that takes long."""
        operations = [
            Operation(protocol.name, protocol.path, protocol.request, protocol.response) for protocol in self.protocols
        ]
        if self.feedback_body:
            response = feedback.FeedbackResponse
            operations.append(Operation("feedback", feedback.PATH, self.feedback_body, response))
        access_control = self.settings.keys is not None
        return openapi.document(
            self.manifest.name,
            self.manifest.version,
            self.card,
            operations,
            self.routes,
            access_control=access_control,
        )
