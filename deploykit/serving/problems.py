"""Errors as clients see them: RFC 9457 problem details, one shape for every status.

A problem is raised inside and becomes a response at the guard, whoever raised it. `reason` is the closed
set by which refusals are counted; `detail` says what to do next and never quotes a text.
"""

import json
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
REASONS = (
    "not_found",
    "method",
    "media_type",
    "too_large",
    "slow",
    "headers",
    "malformed",
    "invalid",
    "auth_missing",
    "auth_invalid",
    "auth_expired",
    "auth_early",
    "auth_disabled",
    "auth_scope",
    "rate",
    "busy",
    "queue_full",
    "not_ready",
    "deadline",
    "client_gone",
    "failed",
)
NOT_READY = "the model is not ready; the log says why"
CLIENT_GONE = 499  # nobody reads it; the log line and the counter do


@dataclass
class Problem(Exception):  # noqa: N818
    """A request that is refused or has failed.

    `errors` lists what is wrong where, for 422; `headers` are added to the response.
    """

    status: int
    reason: str
    detail: str
    errors: list[dict[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


def body(problem: Problem, instance: str) -> bytes:
    """Renders a problem.

    Args:
        problem: what happened.
        instance: the request id, by which the log knows it too.
    """
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": "Client Closed Request" if problem.status == CLIENT_GONE else HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "error": problem.detail,  # where clients of the other protocols look
        "instance": instance,
    }
    if problem.errors:
        content["errors"] = problem.errors
    return json.dumps(content, ensure_ascii=False).encode()


def busy(seconds: float) -> Problem:
    """Makes the refusal of who would wait for too long, with when to try again."""
    return Problem(503, "queue_full", "too many texts are waiting; try again later", headers=retry_after(seconds))


def retry_after(seconds: float) -> dict[str, str]:
    """Returns the header that says when to try again, in whole seconds, at least one."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}
