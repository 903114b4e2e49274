"""The closed list of routes. A path that is not in it is refused before anything else of the request is read."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from deploykit.serving.call import Call, Scope
from deploykit.serving.problems import Problem

PREDICT = "/v1/predict"
METRICS = "/metrics"
DOCS = "/docs.json"
FromFiles = Callable[[Sequence[Mapping[str, Any]]], Any]  # from inputs with files to the content of a body in JSON
Answer = Callable[[Any, Call], Awaitable[Any]]  # from a validated body and its request to the content of the response
INFERENCE_PROTOCOL = (
    "of the Open Inference Protocol there are /v2, /v2/health/live, /v2/health/ready and /v2/models/NAME, with"
    " /versions/VERSION or without it, alone or with /ready or /infer; of its extensions binary_tensor_data only"
)
JSON, TEXT = "application/json", "text/plain"


class Content(NamedTuple):
    """The body of a response, already serialized, and its headers."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Route:
    """One route.

    Args:
        path: also the label in the metrics and the log.
        method: GET (which includes HEAD) or POST.
        scope: that a key needs; None lets everybody in.
        body: the type of the JSON body; None for a route without a body.
        answer: returns the content of the response to a body: a model, plain data or `Content`.
        binary: whether binary data may follow the JSON of the body.
        waits: whether its texts wait for the engine.
        page: returns the response of a route without a body; BentoML answers if there is neither `page` nor `answer`.
        media: the content type of the page.
        headers: of the page.
        also: other paths of the same route.
        from_files: says that the body may be files, and what it then stands for.
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
    from_files: FromFiles | None = None

    @property
    def label(self) -> str:
        """The label in the metrics and the log."""
        return self.path

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of requests that are answered."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


UNKNOWN = Route("unknown")


def table(asked: Sequence[Route], pages: Sequence[Route]) -> tuple[Route, ...]:
    """Lists the routes of a service: those of predictions, the probes, other pages, and BentoML's schema."""
    probes = (Route(path, media=TEXT) for path in ("/livez", "/healthz", "/readyz"))
    return (*asked, *probes, *pages, Route("/schema.json", scope="docs"))


def match(routes: Sequence[Route], method: str, path: str) -> tuple[Route, Problem | None]:
    """Returns the route of a request, and the problem if the path or the method does not exist."""
    for route in routes:
        if path == route.path or path in route.also:
            if method in route.methods:
                return route, None
            allowed = ", ".join(route.methods)
            return route, Problem(405, "method", f"{route.path} takes {allowed} only", headers={"allow": allowed})
    hint = INFERENCE_PROTOCOL if path.startswith("/v2/") else f"predictions are at POST {PREDICT}"
    return UNKNOWN, Problem(404, "not_found", f"there is no such path; {hint}")
