"""The OpenAPI 3.1 document of a service, made from its routes.

BentoML's own document lacks the problems and the routes that the guard answers, and loses "or null" from schemas.
"""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter

from deploykit.methods import Frozen
from deploykit.serving import problems
from deploykit.serving.http import uploads
from deploykit.serving.http.routes import JSON, Route

REFERENCE = "#/components/schemas/{model}"
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
STATUSES_WITH_BODY = (400, 408, 413, 415, 422, 500, 504)  # of routes with a body
STATUSES_WITH_KEY = (401, 403, 429)  # of routes that need a key


class Mistake(Frozen):
    """A mistake in a body."""

    where: str = Field(description="the path to the value")
    message: str


class ProblemDetails(Frozen):
    """Why a request was refused or failed (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what happened, and what to do next")
    error: str = Field(description="the same, for clients of the Open Inference Protocol and of Hugging Face")
    instance: str = Field(description="the request id, as in the header X-Request-Id and in the service's log")
    errors: list[Mistake] = Field(default=[], description="the first mistakes in a body that does not fit")


class Way(NamedTuple):
    """A route with a body: the name of its operation, its path, and the types of request and response."""

    name: str
    path: str
    request: type[BaseModel]
    response: Any


def document(
    name: str, version: str, text: str, asked: Sequence[Way], routes: Sequence[Route], *, guarded: bool
) -> bytes:
    """Returns the document of a model's service.

    `text` describes it in Markdown, `asked` are the routes with a body among all `routes`, and `guarded` says whether
    access control is on.
    """
    types: dict[str, Any] = {ProblemDetails.__name__: ProblemDetails}
    for way in asked:
        types |= {f"{way.path} in": way.request, f"{way.path} out": way.response}
    inputs: Any = [(name, "validation", TypeAdapter(model)) for name, model in types.items()]
    by_name_and_mode, shared = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE)
    schemas = {name: schema for (name, _), schema in by_name_and_mode.items()}
    ways = {way.path: way for way in asked}
    content = {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version, "description": text},
        "servers": [{"url": "."}],
        "paths": {
            route.path: {route.method.lower(): _operation(route, ways.get(route.path), schemas, guarded=guarded)}
            for route in routes
        },
        "components": {"schemas": shared["$defs"], "securitySchemes": SECURITY_SCHEMES},
    }
    return json.dumps(content).encode()


def _operation(route: Route, way: Way | None, schemas: dict[str, Any], *, guarded: bool) -> dict[str, Any]:
    needs_key = guarded and route.scope is not None
    statuses = sorted((*(STATUSES_WITH_BODY if way else ()), *(STATUSES_WITH_KEY if needs_key else ()), 431, 503))
    problem = {"content": {problems.MEDIA_TYPE: {"schema": schemas[ProblemDetails.__name__]}}}
    answer: dict[str, Any] = {"schema": schemas[f"{route.path} out"]} if way else {}
    operation = {
        "operationId": way.name if way else f"get {route.path}",
        "tags": ["predictions" if way else "service"],
        "security": [{scheme: []} for scheme in SECURITY_SCHEMES] if needs_key else [],
        "responses": {
            "200": {"description": "the answer", "content": {route.media.partition(";")[0]: answer}},
            **{str(status): {"description": HTTPStatus(status).phrase, **problem} for status in statuses},
        },
    }
    if way is None:
        return operation
    files = uploads.DESCRIPTION if route.from_files else {}
    body = {"required": True, "content": {JSON: {"schema": schemas[f"{route.path} in"]}, **files}}
    return {**operation, "description": way.request.__doc__, "requestBody": body}
