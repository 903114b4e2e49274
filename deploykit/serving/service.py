"""The BentoML service of a package: `bentoml serve` and `bentoml build` find an ordinary class service.

BentoML keeps what it is good at (the process, the typed API, its description), and is told to leave the
rest: its access log, metrics and tracing stand outside any access control and cost more than a request.
One worker a container: replicas scale, restart and are watched from outside.
"""

import os
from pathlib import Path
from typing import Any, cast

import bentoml
from _bentoml_sdk import Service  # type: ignore[import-untyped]
from bentoml.exceptions import BentoMLConfigException
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import ASGIApp

from deploykit import tasks
from deploykit.artifact import MODEL_CARD
from deploykit.errors import DeploykitError
from deploykit.serving import calls, logs, routes, schemas
from deploykit.serving.guard import Guard
from deploykit.serving.problems import Problem
from deploykit.serving.runtime import Runtime
from deploykit.serving.settings import Settings, load, require_keys

VERSION_LETTERS = 12


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
        answer. The guard has a timeout of its own.
        """
        runtime, table = self.open()
        app = super().to_asgi(is_main)
        app.user_middleware = [part for part in app.user_middleware if part.cls.__name__ != "TimeoutMiddleware"]
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
    request, response = schemas.request_model(artifact.manifest), schemas.response_model(task)
    name, version = artifact.manifest.name, artifact.manifest.key[:VERSION_LETTERS]
    model = schemas.Model(name=name, version=version)
    opened: list[tuple[Runtime, tuple[routes.Route, ...]]] = []

    def open_() -> tuple[Runtime, tuple[routes.Route, ...]]:
        if not opened:
            logs.configure()
            _check_keys(settings)
            labels = [route.label for route in routes.table(request, bytes)]
            runtime = Runtime(settings, artifact, [*labels, routes.UNKNOWN.label])
            opened.append((runtime, routes.table(request, runtime.page)))
        return opened[0]

    class Predictions:
        """Answers for texts."""

        def __init__(self) -> None:
            self.runtime, _ = open_()
            self.runtime.start()

        async def predict(self, asked: BaseModel, /) -> BaseModel | Response:
            """Predicts one answer a text, in the order asked."""
            call = calls.current.get()
            texts, pairs = getattr(asked, "texts"), getattr(asked, "text_pairs", None)  # noqa: B009
            try:
                answers = await self.runtime.predict(texts, pairs, call)
            except Problem as problem:
                call.problem = problem
                return Response(status_code=problem.status)
            return response.model_construct(predictions=answers, model=model)

        @bentoml.on_deployment  # type: ignore[untyped-decorator]
        @staticmethod
        def require_keys() -> None:
            """Stops `bentoml serve` before it listens when nobody could get in."""
            _check_keys(settings)

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        def close(self) -> None:
            """Ends the threads, once the last request has its answer."""
            self.runtime.close()

        async def __is_ready__(self) -> bool:
            return not self.runtime.fault

        async def __is_alive__(self) -> bool:
            return self.runtime.alive

    Predictions.predict.__annotations__ = {"asked": request, "return": response}
    setattr(Predictions, "predict", bentoml.api(route=routes.PREDICT)(Predictions.predict))  # noqa: B010
    service = bentoml.service(
        name=_service_name(name),
        service_class=GuardedService,
        workers=1,
        http={"host": "0.0.0.0" if os.environ.get("BENTOML_CONTAINERIZED") else "127.0.0.1"},  # noqa: S104
        logging={"access": {"enabled": False}},
        metrics={"enabled": False},
        tracing={"excluded_urls": ".*"},
    )(Predictions)
    service.open, service.card = open_, artifact.file(MODEL_CARD)
    return service


def _check_keys(settings: Settings) -> None:
    try:
        require_keys(settings)
    except DeploykitError as error:
        raise BentoMLConfigException(str(error)) from error


def _service_name(name: str) -> str:
    """Keeps what BentoML allows in a tag."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
