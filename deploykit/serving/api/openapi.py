"""The description of the API (OpenAPI 3.1), made of the table of routes: what is asked and answered, which problems.

BentoML's own knows neither the problems nor the routes that the guard renders, and loses "or null" from schemas.
"""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter

from deploykit.serving import problems
from deploykit.serving.api.schemas import Wire
from deploykit.serving.http.routes import JSON, Route

REFERENCE = "#/components/schemas/{model}"
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
ASKED = (400, 408, 413, 415, 422, 500, 504)  # of what has a body
KEYED = (401, 403, 429)  # of what needs a key


class Mistake(Wire):
    """What is wrong with a body."""

    where: str = Field(description="the path to the value")
    message: str


class ProblemDetails(Wire):
    """Why there is no answer (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what happened, and what to do next")
    error: str = Field(description="the same, where clients of the other protocols look for it")
    instance: str = Field(description="the request id, as in the header X-Request-Id and in the service's log")
    errors: list[Mistake] = Field(default=[], description="the first mistakes, where the body does not fit")


class Way(NamedTuple):
    """A way to ask: what it is called, where it is, and the types of what is sent and of the answer."""

    name: str
    path: str
    request: type[BaseModel]
    response: Any


def document(
    name: str, version: str, text: str, asked: Sequence[Way], routes: Sequence[Route], *, guarded: bool
) -> bytes:
    """Renders the description.

    Args:
        name: of the model.
        version: of the model.
        text: what the description begins with.
        asked: the ways to ask.
        routes: everything that exists.
        guarded: whether keys are asked for.
    """
    types: dict[str, Any] = {ProblemDetails.__name__: ProblemDetails}
    for way in asked:
        types |= {f"{way.path} in": way.request, f"{way.path} out": way.response}
    adapters = [(name, "validation", TypeAdapter(found)) for name, found in types.items()]
    found, shared = TypeAdapter.json_schemas(adapters, ref_template=REFERENCE)  # type: ignore[arg-type]
    schemas = {name: schema for (name, _), schema in found.items()}
    ways = {way.path: way for way in asked}
    paths = {
        route.path: {route.method.lower(): _operation(route, ways.get(route.path), schemas, guarded=guarded)}
        for route in routes
    }
    content = {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version, "description": text},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": shared["$defs"], "securitySchemes": SCHEMES},
    }
    return json.dumps(content).encode()


def _operation(route: Route, way: Way | None, schemas: dict[str, Any], *, guarded: bool) -> dict[str, Any]:
    keyed = guarded and route.scope is not None
    statuses = sorted((*(ASKED if way else ()), *(KEYED if keyed else ()), 431, 503))
    problem = {"content": {problems.MEDIA_TYPE: {"schema": schemas[ProblemDetails.__name__]}}}
    answer: dict[str, Any] = {"schema": schemas[f"{route.path} out"]} if way else {}
    operation = {
        "operationId": way.name if way else f"get {route.path}",
        "tags": ["predictions" if way else "service"],
        "security": [{scheme: []} for scheme in SCHEMES] if keyed else [],
        "responses": {
            "200": {"description": "the answer", "content": {route.media.partition(";")[0]: answer}},
            **{str(status): {"description": HTTPStatus(status).phrase, **problem} for status in statuses},
        },
    }
    if way is None:
        return operation
    body = {"required": True, "content": {JSON: {"schema": schemas[f"{route.path} in"]}}}
    return {**operation, "description": way.request.__doc__, "requestBody": body}
