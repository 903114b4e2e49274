"""The BentoML service of a package: `bentoml serve` and `bentoml build` find an ordinary class service.

BentoML runs the process, and offers the typed API in Python. Its access log, metrics and tracing are switched off: they
stand outside access control and cost more than a request. The guard answers what it has checked without another way
through BentoML's application, which would take a third of a short text's time; that application answers probes, and
describes the API to BentoML's own clients. There is one worker per container: replicas are scaled, restarted and
watched from outside.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import bentoml
from bentoml.exceptions import BentoMLConfigException
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from deploykit import tasks
from deploykit.errors import DeploykitError, storage_errors
from deploykit.serving import call, patches
from deploykit.serving.api import feedback
from deploykit.serving.app import Application
from deploykit.serving.call import Client
from deploykit.serving.http import connections
from deploykit.serving.http.guard import Guard
from deploykit.serving.http.routes import Answer
from deploykit.serving.model import MakeBatcher, make_batcher
from deploykit.serving.preflight import require
from deploykit.serving.settings import DRAIN, Settings, load
from deploykit.serving.telemetry import logs

with patches.expected("bentoml", "_bentoml_sdk.Service"):
    from _bentoml_sdk import Service  # type: ignore[import-untyped]

REPLACED = ("TimeoutMiddleware", "OpenTelemetryMiddleware")  # of BentoML: the guard does their work


class GuardedService(Service[Any]):  # type: ignore[misc]
    """BentoML's service with the guard around its application."""

    application: Application

    @property
    def doc(self) -> str:
        """The beginning of the description of the API: the model card."""
        return self.application.card

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Returns the guarded application; BentoML calls this in the worker only.

        BentoML's timeout is removed, because it keeps every request in memory until its time is up, long after the
        answer; the guard has its own. The server's default protocol is changed, because BentoML has no option for it.
        """
        connections.install()
        logs.configure()
        _check(self.application.settings)
        app = super().to_asgi(is_main)
        app.user_middleware = _without_replaced(app.user_middleware)
        return Guard(cast(ASGIApp, app), self.application.table, self.application.runtime)


def build(package: Path, make_batcher: MakeBatcher = make_batcher) -> Service[Any]:
    """Makes the service of a package; loads no model yet.

    Args:
        package: its directory, unless `DEPLOYKIT_PACKAGE` names another.
        make_batcher: makes the queue for the engine; benchmarks compare others.

    Raises:
        BentoMLConfigException: the directory is no package, or a setting is not valid.

    Example:
        >>> service = build(Path("runs/movies/package"))  # doctest: +SKIP
    """
    with _bentoml_errors():
        patches.require_parts()
        settings, artifact = load(package)
        task = tasks.task_of(artifact.manifest)
    application = Application(settings, artifact, task, make_batcher)
    service = bentoml.service(
        name=_service_name(artifact.manifest.name),
        service_class=GuardedService,
        workers=1,
        http={"host": "0.0.0.0" if os.environ.get("BENTOML_CONTAINERIZED") else "127.0.0.1"},  # noqa: S104
        logging={"access": {"enabled": False}},
        metrics={"enabled": False},
        tracing={"excluded_urls": ".*"},
    )(_predictions_class(application))
    with _bentoml_errors():  # an ordinary service would be open to everybody
        patches.require(isinstance(service, GuardedService), "bentoml", "service(service_class=...)")
    service.application = application
    return service


def _predictions_class(application: Application) -> type:
    """Makes the class of which BentoML makes a service: the life of the process, and a method for each protocol."""

    class Predictions:
        """Answers for texts."""

        def __init__(self) -> None:
            self.runtime = application.runtime
            self.runtime.start()

        @bentoml.on_deployment  # type: ignore[untyped-decorator]
        @staticmethod
        def require_settings() -> None:
            """Stops `bentoml serve` before it listens if nobody could get in, or something else is missing.

            A worker that is restarted does not run this, so a drain ends here.
            """
            _check(application.settings)
            with _bentoml_errors(), storage_errors(application.settings.drain, DRAIN):
                application.settings.drain.unlink(missing_ok=True)  # of the service before

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        async def close(self) -> None:
            """Ends threads and connections, after the last request."""
            self.runtime.close()
            await self.runtime.limits.close()

        async def __is_ready__(self) -> bool:
            return self.runtime.ready

        async def __is_alive__(self) -> bool:
            return self.runtime.alive

    for protocol in application.protocols:
        method = _method(protocol.name, application.answer_in(protocol), protocol.request, protocol.response)
        setattr(Predictions, protocol.name, bentoml.api(route=protocol.path)(method))
    if application.feedback:
        method = _method("feedback", application.take_feedback, application.feedback, feedback.FeedbackResponse)
        Predictions.feedback = bentoml.api(route=feedback.PATH)(method)  # type: ignore[attr-defined]
    return Predictions


def _without_replaced(middleware: Sequence[Middleware]) -> list[Middleware]:
    """Removes the middleware whose work the guard does; each must be there."""
    names = [getattr(part.cls, "__name__", "") for part in middleware]
    with _bentoml_errors():
        for name in REPLACED:
            patches.require(name in names, "bentoml", f"{name} around its application")
    return [part for part, name in zip(middleware, names, strict=True) if name not in REPLACED]


def _method(name: str, answer: Answer, request: type[BaseModel], response: Any) -> Callable[..., Any]:
    """Makes a method of the typed API, for callers in this process; the guard calls `answer` itself."""

    async def method(_: Any, asked: Any, /) -> Any:
        return await answer(asked, call.Call(call.new_id(), Client("none")))

    method.__name__ = name
    method.__doc__ = request.__doc__
    method.__annotations__ = {"asked": request, "return": response}
    return method


def _check(settings: Settings) -> None:
    with _bentoml_errors():
        require(settings)


@contextmanager
def _bentoml_errors() -> Iterator[None]:
    """Turns errors into those of BentoML, which it prints without a traceback."""
    try:
        yield
    except DeploykitError as error:
        raise BentoMLConfigException(str(error)) from error


def _service_name(name: str) -> str:
    """Replaces what BentoML does not allow in a tag."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
