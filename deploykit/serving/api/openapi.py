"""The OpenAPI 3.1 document of a service, made from its routes.

BentoML's own document has neither the error responses nor the routes that the guard answers, and its schemas do not say
which values may be null.
"""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter

from deploykit.methods import Frozen
from deploykit.serving import problems
from deploykit.serving.http import uploads
from deploykit.serving.http.routes import JSON_TYPE, Route

SCHEMA_REFERENCE = "#/components/schemas/{model}"
SECURITY_SCHEMES = {  # two ways to send a key
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
# statuses of error responses, of which the document tells:
BODY_ERROR_STATUSES = (400, 408, 413, 415, 422, 500, 504)  # of routes that read a request body
ACCESS_ERROR_STATUSES = (401, 403, 429)  # of routes that need a key
COMMON_ERROR_STATUSES = (431, 503)  # of all routes


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


class Operation(NamedTuple):
    """A route that reads a request body: its name in the document, its path, and the types of both bodies."""

    name: str
    path: str
    request: type[BaseModel]
    response: Any


def document(
    name: str,
    version: str,
    description: str,
    operations: Sequence[Operation],
    routes: Sequence[Route],
    *,
    access_control: bool,
) -> bytes:
    """Returns the document of a model's service, in JSON.

    Args:
        name: of the model.
        version: of the model.
        description: of the service, in Markdown.
        operations: those of the routes that read a request body.
        routes: all routes.
        access_control: whether it is on.
    """
    types: dict[str, Any] = {ProblemDetails.__name__: ProblemDetails}
    for operation in operations:
        types |= {f"{operation.path} in": operation.request, f"{operation.path} out": operation.response}
    inputs: Any = [(name, "validation", TypeAdapter(model)) for name, model in types.items()]
    by_name_and_mode, shared = TypeAdapter.json_schemas(inputs, ref_template=SCHEMA_REFERENCE)
    schemas = {name: schema for (name, _), schema in by_name_and_mode.items()}
    by_path = {operation.path: operation for operation in operations}
    content = {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version, "description": description},
        "servers": [{"url": "."}],
        "paths": {
            route.path: {
                route.method.lower(): _operation_object(
                    route, by_path.get(route.path), schemas, needs_key=access_control and route.scope is not None
                )
            }
            for route in routes
        },
        "components": {"schemas": shared["$defs"], "securitySchemes": SECURITY_SCHEMES},
    }
    return json.dumps(content).encode()


def _operation_object(
    route: Route, operation: Operation | None, schemas: dict[str, Any], *, needs_key: bool
) -> dict[str, Any]:
    """Returns what OpenAPI calls an operation object: the description of one route.

    Args:
        route: the route.
        operation: names and types, if it reads a request body.
        schemas: of bodies: `PATH in` and `PATH out` of each operation, and that of problems.
        needs_key: whether the route needs a key.
    """
    body_statuses = BODY_ERROR_STATUSES if operation else ()
    access_statuses = ACCESS_ERROR_STATUSES if needs_key else ()
    statuses = sorted((*body_statuses, *access_statuses, *COMMON_ERROR_STATUSES))
    problem = {"content": {problems.PROBLEM_MEDIA_TYPE: {"schema": schemas[ProblemDetails.__name__]}}}
    answer: dict[str, Any] = {"schema": schemas[f"{route.path} out"]} if operation else {}
    content = {
        "operationId": operation.name if operation else f"get {route.path}",
        "tags": ["predictions" if operation else "service"],
        "security": [{scheme: []} for scheme in SECURITY_SCHEMES] if needs_key else [],
        "responses": {
            "200": {"description": "the answer", "content": {route.media_type.partition(";")[0]: answer}},
            **{str(status): {"description": HTTPStatus(status).phrase, **problem} for status in statuses},
        },
    }
    if operation is None:
        return content
    files = uploads.OPENAPI_CONTENT if route.from_files else {}
    body = {"required": True, "content": {JSON_TYPE: {"schema": schemas[f"{route.path} in"]}, **files}}
    return {**content, "description": operation.request.__doc__, "requestBody": body}
