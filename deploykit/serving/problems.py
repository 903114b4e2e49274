"""Errors as clients see them: problem details (RFC 9457), with the same fields for every status.

Any part of the service raises a `Problem`, and the guard turns it into the response. Metrics count refusals by
`reason`, one of `REASONS`. `detail` says what to do next and never quotes a text.
"""

import json
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
REASONS = (
    *("not_found", "method", "media_type", "too_large", "slow", "headers", "malformed", "invalid"),
    *("auth_missing", "auth_invalid", "auth_expired", "auth_early", "auth_disabled", "auth_scope"),
    *("rate", "busy", "queue_full", "not_ready", "deadline", "client_gone", "failed"),
)
NOT_READY = "the model is not ready; the log says why"
CLIENT_GONE = 499  # the client has disconnected: this status is only logged and counted


@dataclass
class Problem(Exception):  # noqa: N818
    """A request that is refused or has failed.

    `errors` lists the mistakes in a body (422); `headers` are added to the response.
    """

    status: int
    reason: str
    detail: str
    errors: list[dict[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


def body(problem: Problem, instance: str) -> bytes:
    """Returns the body of the response to a problem; `instance` is the request id, which the log has too."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": "Client Closed Request" if problem.status == CLIENT_GONE else HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "error": problem.detail,  # the field that clients of the Open Inference Protocol and of Hugging Face read
        "instance": instance,
    }
    if problem.errors:
        content["errors"] = problem.errors
    return json.dumps(content, ensure_ascii=False).encode()


def busy(seconds: float) -> Problem:
    """Returns the refusal of a request that would wait too long in the queue.

    Args:
        seconds: after which the client may try again.
    """
    return Problem(503, "queue_full", "too many texts are waiting; try again later", headers=retry_after(seconds))


def retry_after(seconds: float) -> dict[str, str]:
    """Returns the header Retry-After: whole seconds, at least one."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}
