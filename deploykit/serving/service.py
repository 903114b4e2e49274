"""The BentoML service of a package, for `bentoml serve` and `bentoml build`.

BentoML runs the process, answers probes, and describes the API to its own clients. Its access log, metrics and tracing
are switched off, because they are outside access control and take more time than a request. All requests come to the
guard first. It answers those for predictions itself, because BentoML's application takes a third of the time of a
request with a short text. The service has one worker: replicas are scaled, restarted and watched from outside.
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
from deploykit.serving.preflight import require_startable
from deploykit.serving.settings import DRAIN_VARIABLE, Settings, load_settings
from deploykit.serving.telemetry import logs

with patches.library_errors("bentoml", "_bentoml_sdk.Service"):
    from _bentoml_sdk import Service  # type: ignore[import-untyped]

REPLACED_MIDDLEWARE = ("TimeoutMiddleware", "OpenTelemetryMiddleware")  # of BentoML; the guard does their work


class GuardedService(Service[Any]):  # type: ignore[misc]
    """A BentoML service whose ASGI application is inside the guard; `build` sets `application`."""

    application: Application

    @property
    def doc(self) -> str:
        """The model card in Markdown, with which BentoML begins its description of the API."""
        return self.application.card

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Returns BentoML's application inside the guard; BentoML calls this in its worker only.

        BentoML's timeout is removed, because it keeps every request in memory until the timeout has passed, long after
        the answer; the guard has its own. uvicorn is told to use the connection class of `http.connections` by a change
        of its table, because BentoML has no option for that. The log is configured, and the settings are checked again.
        """
        connections.install()
        logs.configure()
        _require_settings(self.application.settings)
        app = super().to_asgi(is_main)
        app.user_middleware = _without_replaced_middleware(app.user_middleware)
        return Guard(cast(ASGIApp, app), self.application.routes, self.application.runtime)


def build(package: Path, make_batcher: MakeBatcher = make_batcher) -> Service[Any]:
    """Makes the service of a package; loads no model yet.

    Args:
        package: its directory, unless `DEPLOYKIT_PACKAGE` names another.
        make_batcher: makes the queue for the engine; benchmarks replace it.

    Raises:
        BentoMLConfigException: the directory is no package, or a setting is not valid.

    Example:
        >>> service = build(Path("runs/movies/package"))  # doctest: +SKIP
    """
    with _bentoml_errors():
        patches.require_parts()
        settings, artifact = load_settings(package)
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
    with _bentoml_errors():  # without the guard, the service would be open to everybody
        patches.require_part(isinstance(service, GuardedService), "bentoml", "service(service_class=...)")
    service.application = application
    return service


def _predictions_class(application: Application) -> type:
    """Makes the class that BentoML turns into a service.

    It starts and closes the runtime, and has one method for each protocol, which Python callers in this process use.
    """

    class Predictions:
        """Answers for texts."""

        def __init__(self) -> None:
            self.runtime = application.runtime
            self.runtime.start()

        @bentoml.on_deployment  # type: ignore[untyped-decorator]
        @staticmethod
        def require_settings() -> None:
            """Checks the settings and ends a drain, before `bentoml serve` listens.

            The file that drains the service is deleted here, because BentoML runs this at each start of the service,
            but not when it restarts a worker, which must go on draining.
            """
            _require_settings(application.settings)
            with _bentoml_errors(), storage_errors(application.settings.drain, DRAIN_VARIABLE):
                application.settings.drain.unlink(missing_ok=True)

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        async def close(self) -> None:
            """Ends the threads and the connections to Redis, after the last request."""
            self.runtime.close()
            await self.runtime.limits.close()

        async def __is_ready__(self) -> bool:
            """Answers BentoML's route /readyz."""
            return self.runtime.ready

        async def __is_alive__(self) -> bool:
            """Answers BentoML's route /livez."""
            return self.runtime.alive

    for protocol in application.protocols:
        method = _api_method(protocol.name, application.answer_function(protocol), protocol.request, protocol.response)
        setattr(Predictions, protocol.name, bentoml.api(route=protocol.path)(method))
    if application.feedback_body:
        method = _api_method(
            "feedback", application.take_feedback, application.feedback_body, feedback.FeedbackResponse
        )
        Predictions.feedback = bentoml.api(route=feedback.PATH)(method)  # type: ignore[attr-defined]
    return Predictions


def _without_replaced_middleware(middleware: Sequence[Middleware]) -> list[Middleware]:
    """Leaves out the middleware whose work the guard does; raises an error if one of them is not there."""
    names = [getattr(layer.cls, "__name__", "") for layer in middleware]
    with _bentoml_errors():
        for name in REPLACED_MIDDLEWARE:
            patches.require_part(name in names, "bentoml", f"{name} around its application")
    return [layer for layer, name in zip(middleware, names, strict=True) if name not in REPLACED_MIDDLEWARE]


def _api_method(name: str, answer: Answer, request: type[BaseModel], response: Any) -> Callable[..., Any]:
    """Makes a method of the BentoML service, for Python callers in this process.

    Requests by HTTP do not come here: the guard calls `answer` itself.

    Args:
        name: of the method.
        answer: answers a validated body.
        request: the type of the body.
        response: the type of the answer.
    """

    async def method(_: Any, body: Any, /) -> Any:
        return await answer(body, call.Call(call.new_request_id(), Client("none")))

    method.__name__ = name
    method.__doc__ = request.__doc__
    method.__annotations__ = {"body": request, "return": response}
    return method


def _require_settings(settings: Settings) -> None:
    """Checks that a service with these settings can start; raises an error of BentoML if not."""
    with _bentoml_errors():
        require_startable(settings)


@contextmanager
def _bentoml_errors() -> Iterator[None]:
    """Turns errors of deploykit into one of BentoML, which BentoML prints without a traceback."""
    try:
        yield
    except DeploykitError as error:
        raise BentoMLConfigException(str(error)) from error


def _service_name(name: str) -> str:
    """Returns the name of a package as BentoML allows it: in lower case, other characters become underscores."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
