"""The table of what exists. A path that is not in it is refused before anybody else sees it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from deploykit.serving.access.keys import Scope
from deploykit.serving.call import Call
from deploykit.serving.problems import Problem

PREDICT = "/v1/predict"
METRICS = "/metrics"
DOCS = "/docs.json"
Answer = Callable[[Any, Call], Awaitable[Any]]  # of a body that was checked, and of its request
INFERENCE_PROTOCOL = (
    "of the Open Inference Protocol there are /v2, /v2/health/live, /v2/health/ready and /v2/models/NAME, with"
    " /versions/VERSION or without it, alone or with /ready or /infer; of its extensions binary_tensor_data only"
)
JSON, TEXT = "application/json", "text/plain"


class Content(NamedTuple):
    """An answer that is written already."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Route:
    """One path, or several for the same.

    Args:
        path: as the client writes it; also the label in the metrics.
        also: other paths of the same.
        method: GET (HEAD too) or POST.
        scope: what a key must open; None for everybody.
        body: the type of the JSON body; None where there is none.
        answer: makes what is sent of a body, as a model or plain data; raises a problem where there is no answer.
        binary: whether binary data may follow the JSON of its body.
        waits: whether its texts wait for the engine.
        page: renders the response; raises a problem where there is none. Without either, BentoML answers.
        media: the content type of the answer.
        headers: sent with the page.
    """

    path: str
    method: str = "GET"
    scope: Scope | None = None
    body: type[BaseModel] | None = None
    answer: Answer | None = None
    binary: bool = False
    waits: bool = False
    page: Callable[[], bytes] | None = None
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How the metrics and the log call this route."""
        return self.path

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are answered."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)

    def holds(self, path: str) -> bool:
        """Says whether a path is this route's."""
        return path in (self.path, *self.also)


UNKNOWN = Route("unknown")


def table(asked: Sequence[Route], pages: Sequence[Route]) -> tuple[Route, ...]:
    """Lists the routes of a service.

    Args:
        asked: the ways to ask for predictions, our own first.
        pages: everything else that is answered here.
    """
    return (
        *asked,
        Route("/livez", media=TEXT),
        Route("/healthz", media=TEXT),
        Route("/readyz", media=TEXT),
        *pages,
        Route("/schema.json", scope="docs"),
    )


def match(routes: Sequence[Route], method: str, path: str) -> tuple[Route, Problem | None]:
    """Finds a request's route; beside it the problem, if there is one."""
    for route in routes:
        if route.holds(path):
            if method in route.methods:
                return route, None
            allowed = ", ".join(route.methods)
            problem = Problem(405, "method", f"{route.path} takes {allowed} only", headers={"allow": allowed})
            return route, problem
    detail = f"there is no such path; predictions are at POST {PREDICT}"
    if path.startswith("/v2/"):
        detail = f"there is no such path; {INFERENCE_PROTOCOL}"
    return UNKNOWN, Problem(404, "not_found", detail)
