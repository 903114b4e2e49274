"""Errors as clients see them: problem details (RFC 9457), with the same fields for every status.

Any part of the service raises a `Problem`, and the guard turns it into the response. Metrics count problems by
`reason`. `detail` says what to do next, and never quotes a text of the client.
"""

import json
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

PROBLEM_MEDIA_TYPE = "application/problem+json"
PROBLEM_REASONS = (  # values of the label `reason` in the metrics
    *("not_found", "method", "media_type", "too_large", "slow", "headers", "malformed", "invalid"),
    *("auth_missing", "auth_invalid", "auth_expired", "auth_early", "auth_disabled", "auth_scope"),
    *("rate", "busy", "queue_full", "not_ready", "deadline", "client_gone", "failed"),
)
NOT_READY_DETAIL = "the model is not ready; the log says why"
CLIENT_GONE_STATUS = 499  # the client has disconnected: this status is only logged and counted


@dataclass
class Problem(Exception):  # noqa: N818
    """A request that is refused or has failed.

    Attributes:
        status: of the response.
        reason: one of `PROBLEM_REASONS`, for the metrics.
        detail: for the client.
        errors: mistakes in a body that does not match its type (422): `where` and `message` of each.
        headers: are added to the response.
    """

    status: int
    reason: str
    detail: str
    errors: list[dict[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


def response_body(problem: Problem, request_id: str) -> bytes:
    """Returns the body of the response to a problem, in JSON; its `instance` is the request id, as in the log."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": "Client Closed Request" if problem.status == CLIENT_GONE_STATUS else HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "error": problem.detail,  # the field that clients of the Open Inference Protocol and of Hugging Face read
        "instance": request_id,
    }
    if problem.errors:
        content["errors"] = problem.errors
    return json.dumps(content, ensure_ascii=False).encode()


def queue_full_problem(seconds: float) -> Problem:
    """Returns the problem (503) of a request that would wait too long in the queue.

    Args:
        seconds: after how many the client may try again.
    """
    return Problem(
        503, "queue_full", "too many texts are waiting; try again later", headers=retry_after_header(seconds)
    )


def retry_after_header(seconds: float) -> dict[str, str]:
    """Returns the header Retry-After: `seconds` rounded up, at least one."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}
