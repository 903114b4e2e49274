"""The routes of the service. A request for any other path is refused before anything else of it is read."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from deploykit.serving.call import Call, Scope
from deploykit.serving.problems import Problem

PREDICT_PATH = "/v1/predict"
METRICS_PATH = "/metrics"
DOCS_PATH = "/docs.json"
FromFiles = Callable[[Sequence[Mapping[str, Any]]], Any]  # from inputs with files to the body that JSON would have
Answer = Callable[[Any, Call], Awaitable[Any]]  # from a validated body and its request to the content of the response
OPEN_INFERENCE_HINT = (  # in the refusal of an unknown path below /v2
    "of the Open Inference Protocol there are /v2, /v2/health/live, /v2/health/ready and /v2/models/NAME, with"
    " /versions/VERSION or without it, alone or with /ready or /infer; of its extensions binary_tensor_data only"
)
JSON_TYPE, TEXT_TYPE = "application/json", "text/plain"


class Content(NamedTuple):
    """The body of a response, already serialized, and its headers."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Route:
    """One route.

    It has `body` and `answer`, or `render`, or neither: then BentoML's application answers.

    Attributes:
        path: the path; also the label of the route in the metrics and the log.
        method: GET (which includes HEAD) or POST.
        scope: the scope that a key needs; None lets everybody in.
        body: the type of the JSON body; None for a route without a body.
        answer: returns the content of the response to a body: a pydantic model, plain data or `Content`.
        binary: whether binary data may follow the JSON of the body.
        uses_engine: whether its texts wait for the engine.
        render: returns the body of the response, for a route without a request body.
        media_type: the content type of what `render` returns.
        headers: of the response with what `render` returns.
        other_paths: more paths of the same route.
        from_files: makes the body of a request from uploaded files; None if the route accepts no files.
    """

    path: str
    method: str = "GET"
    scope: Scope | None = None
    body: type[BaseModel] | None = None
    answer: Answer | None = None
    binary: bool = False
    uses_engine: bool = False
    render: Callable[[], bytes] | None = None
    media_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)
    other_paths: tuple[str, ...] = ()
    from_files: FromFiles | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that the route takes."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


UNKNOWN_ROUTE = Route("unknown")  # stands for all paths that do not exist, in the metrics and the log


def all_routes(predictions: Sequence[Route], others: Sequence[Route]) -> tuple[Route, ...]:
    """Adds the routes that BentoML answers to those of predictions and the others: the probes, and its API schema."""
    probes = (Route(path, media_type=TEXT_TYPE) for path in ("/livez", "/healthz", "/readyz"))
    return (*predictions, *probes, *others, Route("/schema.json", scope="docs"))


def match(routes: Sequence[Route], method: str, path: str) -> tuple[Route, Problem | None]:
    """Returns the route of a request, and a problem if the path does not exist (404) or takes other methods (405)."""
    for route in routes:
        if path == route.path or path in route.other_paths:
            if method in route.methods:
                return route, None
            allowed = ", ".join(route.methods)
            return route, Problem(405, "method", f"{route.path} takes {allowed} only", headers={"allow": allowed})
    hint = OPEN_INFERENCE_HINT if path.startswith("/v2/") else f"predictions are at POST {PREDICT_PATH}"
    return UNKNOWN_ROUTE, Problem(404, "not_found", f"there is no such path; {hint}")
