"""The BentoML service of a package: `bentoml serve` and `bentoml build` find an ordinary class service.

BentoML keeps what it is good at (the process, the typed API, its description), and is told to leave the
rest: its access log, metrics and tracing stand outside any access control and cost more than a request.
One worker a container: replicas scale, restart and are watched from outside.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import bentoml
from _bentoml_sdk import Service  # type: ignore[import-untyped]
from bentoml.exceptions import BentoMLConfigException
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from deploykit import tasks
from deploykit.artifact import MODEL_CARD, Manifest
from deploykit.errors import DeploykitError
from deploykit.serving import (
    calls,
    connections,
    description,
    explanations,
    feedback,
    logs,
    names,
    page,
    protocols,
    records,
    routes,
)
from deploykit.serving.description import Way
from deploykit.serving.guard import Guard
from deploykit.serving.problems import NOT_READY, Problem
from deploykit.serving.protocols import Protocol
from deploykit.serving.routes import Route
from deploykit.serving.runtime import Runtime
from deploykit.serving.settings import Settings, load, require_keys, require_signer
from deploykit.tasks import Task

REPLACED = ("TimeoutMiddleware", "OpenTelemetryMiddleware")  # of BentoML, by what the guard does


class GuardedService(Service[Any]):  # type: ignore[misc]
    """BentoML's service with the guard around its application; `open` makes what the process serves with."""

    open: Any
    card: Path

    @property
    def doc(self) -> str:
        """What the description of the API begins with: the model card."""
        return self.card.read_text(encoding="utf-8") if self.card.is_file() else self.name

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Returns the guarded application; BentoML calls this in the worker only.

        BentoML's timeout is taken out: it keeps every request in memory until its time is up, long after the
        answer. The guard has a timeout of its own. BentoML cannot be told which protocol its server speaks, so the
        server's default is changed.
        """
        connections.install()
        runtime, table = self.open()
        app = super().to_asgi(is_main)
        app.user_middleware = [part for part in app.user_middleware if part.cls.__name__ not in REPLACED]
        return Guard(cast(ASGIApp, app), table, runtime)


def build(package: Path) -> Service[Any]:
    """Makes the service of a package; loads nothing yet.

    Args:
        package: its directory, unless `DEPLOYKIT_PACKAGE` names another.

    Raises:
        BentoMLConfigException: the directory is no package, or a setting makes no sense.

    Example:
        >>> service = build(Path("runs/movies/package"))  # doctest: +SKIP
    """
    try:
        settings, artifact = load(package)
        task = tasks.load(artifact.manifest.task)
    except DeploykitError as error:
        raise BentoMLConfigException(str(error)) from error
    manifest, opened = artifact.manifest, list[tuple[Runtime, tuple[Route, ...]]]()
    asked = (
        *(protocols.predict(manifest, task), protocols.infer(manifest), protocols.pipeline(manifest, task)),
        *explanations.explain(manifest, task),
    )
    corrected = feedback.request_model(manifest) if settings.recording and "label" in task.Answer.model_fields else None
    kept = [Route(feedback.PATH, "POST", "predict", corrected)] if corrected else []
    docs = Route(routes.DOCS, scope="docs", page=lambda: described())
    table = routes.table(
        asked, (*_pages(lambda: opened[0][0], manifest, task), *page.pages(artifact, task), *kept, docs)
    )

    def described() -> bytes:
        version, guarded = protocols.version_of(manifest), settings.keys is not None
        ways = [Way(way.name, way.path, way.request, way.response) for way in asked]
        if corrected:
            ways.append(Way("feedback", feedback.PATH, corrected, feedback.FeedbackResponse))
        return description.document(manifest.name, version, service.doc, ways, table, guarded=guarded)

    def open_() -> tuple[Runtime, tuple[Route, ...]]:
        if not opened:
            logs.configure()
            _check(settings)
            labels = [route.label for route in (*table, routes.UNKNOWN)]
            opened.append((Runtime(settings, artifact, labels), table))
        return opened[0]

    class Predictions:
        """Answers for texts."""

        def __init__(self) -> None:
            self.runtime, _ = open_()
            self.runtime.start()

        @bentoml.on_deployment  # type: ignore[untyped-decorator]
        @staticmethod
        def require_what_is_needed() -> None:
            """Stops `bentoml serve` before it listens when nobody could get in, or something else is missing."""
            _check(settings)

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        async def close(self) -> None:
            """Ends threads and connections, once the last request has its answer."""
            self.runtime.close()
            await self.runtime.limits.close()

        async def __is_ready__(self) -> bool:
            return self.runtime.ready

        async def __is_alive__(self) -> bool:
            return self.runtime.alive

    for protocol in asked:
        setattr(Predictions, protocol.name, bentoml.api(route=protocol.path)(_operation(protocol)))
    if corrected:
        Predictions.feedback = bentoml.api(route=feedback.PATH)(feedback.operation(corrected))  # type: ignore[attr-defined]
    service = bentoml.service(
        name=_service_name(manifest.name),
        service_class=GuardedService,
        workers=1,
        http={"host": "0.0.0.0" if os.environ.get("BENTOML_CONTAINERIZED") else "127.0.0.1"},  # noqa: S104
        logging={"access": {"enabled": False}},
        metrics={"enabled": False},
        tracing={"excluded_urls": ".*"},
    )(Predictions)
    service.open, service.card = open_, artifact.file(MODEL_CARD)
    return service


def _operation(protocol: Protocol) -> Callable[..., Any]:
    """Makes the method that answers in a protocol."""

    async def operation(self: Any, asked: BaseModel, /) -> Any:
        call = calls.current.get()
        try:
            answers = await self.runtime.predict(*protocol.read(asked), call, counted=protocol.counted)
        except Problem as problem:
            call.problem = problem
            return Response(status_code=problem.status)
        found = protocol.write(asked, answers)
        return found if isinstance(found, BaseModel) else JSONResponse(found)

    operation.__name__ = protocol.name
    operation.__doc__ = protocol.request.__doc__
    operation.__annotations__ = {"asked": protocol.request, "return": protocol.response}
    return operation


def _pages(runtime: Callable[[], Runtime], manifest: Manifest, task: Task) -> tuple[Route, ...]:
    """Lists what is rendered by the guard itself: the metrics, and what the Open Inference Protocol tells."""

    def ready() -> bytes:
        if not runtime().ready:
            raise Problem(503, "not_ready", NOT_READY)
        return json.dumps({"name": manifest.name, "ready": True}).encode()

    def live() -> bytes:
        if not runtime().alive:
            raise Problem(503, "not_ready", "the engine does not come back with a batch")
        return json.dumps({"live": True}).encode()

    model = protocols.model_path(manifest)
    return (
        Route(routes.METRICS, scope="metrics", page=lambda: runtime().page(), media=CONTENT_TYPE_LATEST),
        Route("/v2", scope="predict", page=protocols.server_metadata),
        Route("/v2/health/live", page=live),
        Route("/v2/health/ready", page=ready),
        Route(model, scope="predict", page=lambda: protocols.model_metadata(manifest, task)),
        Route(f"{model}/ready", page=ready),
    )


def _check(settings: Settings) -> None:
    try:
        require_keys(settings)
        require_signer(settings)
        records.require_folder(settings)
        names.require_model(settings)
    except DeploykitError as error:
        raise BentoMLConfigException(str(error)) from error


def _service_name(name: str) -> str:
    """Keeps what BentoML allows in a tag."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
