"""The BentoML service of a package: `bentoml serve` and `bentoml build` find an ordinary class service.

BentoML keeps what it is good at (the process, its life, the typed API in Python), and is told to leave the
rest: its access log, metrics and tracing stand outside any access control and cost more than a request. What the
guard has read and checked is answered without another way through BentoML's application, which costs a third of a
short text's time; that answers the probes, and what the API looks like to BentoML's own clients.
One worker a container: replicas scale, restart and are watched from outside.
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
from deploykit.serving.access.check import Client
from deploykit.serving.api import feedback
from deploykit.serving.app import Offer
from deploykit.serving.http import connections
from deploykit.serving.http.guard import Guard
from deploykit.serving.http.routes import Answer
from deploykit.serving.model import MakeBatcher, make_batcher
from deploykit.serving.preflight import require
from deploykit.serving.settings import DRAIN, Settings, load
from deploykit.serving.telemetry import logs

with patches.expected("bentoml", "_bentoml_sdk.Service"):
    from _bentoml_sdk import Service  # type: ignore[import-untyped]

REPLACED = ("TimeoutMiddleware", "OpenTelemetryMiddleware")  # of BentoML, by what the guard does


class GuardedService(Service[Any]):  # type: ignore[misc]
    """BentoML's service with the guard around its application."""

    offer: Offer

    @property
    def doc(self) -> str:
        """What the description of the API begins with: the model card."""
        return self.offer.card

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Returns the guarded application; BentoML calls this in the worker only.

        BentoML's timeout is taken out: it keeps every request in memory until its time is up, long after the
        answer. The guard has a timeout of its own. BentoML cannot be told which protocol its server speaks, so the
        server's default is changed.
        """
        connections.install()
        logs.configure()
        _check(self.offer.settings)
        app = super().to_asgi(is_main)
        app.user_middleware = _without_replaced(app.user_middleware)
        return Guard(cast(ASGIApp, app), self.offer.table, self.offer.runtime)


def build(package: Path, make_batcher: MakeBatcher = make_batcher) -> Service[Any]:
    """Makes the service of a package; loads nothing yet.

    Args:
        package: its directory, unless `DEPLOYKIT_PACKAGE` names another.
        make_batcher: makes the queue in front of the engine; benchmarks compare others.

    Raises:
        BentoMLConfigException: the directory is no package, or a setting makes no sense.

    Example:
        >>> service = build(Path("runs/movies/package"))  # doctest: +SKIP
    """
    with _told():
        patches.require_parts()
        settings, artifact = load(package)
        task = tasks.load(artifact.manifest.task)
    offer = Offer(settings, artifact, task, make_batcher)

    class Predictions:
        """Answers for texts."""

        def __init__(self) -> None:
            self.runtime = offer.runtime
            self.runtime.start()

        @bentoml.on_deployment  # type: ignore[untyped-decorator]
        @staticmethod
        def require_what_is_needed() -> None:
            """Stops `bentoml serve` before it listens when nobody could get in, or something else is missing.

            This is the one place that a worker which is started anew does not come by, so a drain ends here.
            """
            _check(settings)
            with _told(), storage_errors(settings.drain, DRAIN):
                settings.drain.unlink(missing_ok=True)  # of the service before

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        async def close(self) -> None:
            """Ends threads and connections, once the last request has its answer."""
            self.runtime.close()
            await self.runtime.limits.close()

        async def __is_ready__(self) -> bool:
            return self.runtime.ready

        async def __is_alive__(self) -> bool:
            return self.runtime.alive

    for way in offer.asked:
        operation = _operation(way.name, offer.answering(way), way.request, way.response)
        setattr(Predictions, way.name, bentoml.api(route=way.path)(operation))
    if offer.feedback:
        operation = _operation("feedback", offer.correct, offer.feedback, feedback.FeedbackResponse)
        Predictions.feedback = bentoml.api(route=feedback.PATH)(operation)  # type: ignore[attr-defined]
    service = bentoml.service(
        name=_service_name(artifact.manifest.name),
        service_class=GuardedService,
        workers=1,
        http={"host": "0.0.0.0" if os.environ.get("BENTOML_CONTAINERIZED") else "127.0.0.1"},  # noqa: S104
        logging={"access": {"enabled": False}},
        metrics={"enabled": False},
        tracing={"excluded_urls": ".*"},
    )(Predictions)
    with _told():  # without it, everything would be open
        patches.require(isinstance(service, GuardedService), "bentoml", "service(service_class=...)")
    service.offer = offer
    return service


def _without_replaced(middleware: Sequence[Middleware]) -> list[Middleware]:
    """Takes out what the guard does in place of BentoML, all of which must be there."""
    names = [getattr(part.cls, "__name__", "") for part in middleware]
    with _told():
        for name in REPLACED:
            patches.require(name in names, "bentoml", f"{name} around its application")
    return [part for part, name in zip(middleware, names, strict=True) if name not in REPLACED]


def _operation(name: str, answer: Answer, request: type[BaseModel], response: Any) -> Callable[..., Any]:
    """Makes the method of the typed API: what the guard calls for a request, for callers in this process."""

    async def operation(_: Any, asked: Any, /) -> Any:
        return await answer(asked, call.Call(call.new_id(), Client("none")))

    operation.__name__ = name
    operation.__doc__ = request.__doc__
    operation.__annotations__ = {"asked": request, "return": response}
    return operation


def _check(settings: Settings) -> None:
    with _told():
        require(settings)


@contextmanager
def _told() -> Iterator[None]:
    """Makes errors those of BentoML, which it prints without a traceback."""
    try:
        yield
    except DeploykitError as error:
        raise BentoMLConfigException(str(error)) from error


def _service_name(name: str) -> str:
    """Keeps what BentoML allows in a tag."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
