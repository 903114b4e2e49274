"""One request on its way through the service: who sent it, and how much time and how many tokens it has taken.

The guard makes a `Call`. Each step adds the figures that the log line, the trace and `Server-Timing` report.
"""

import asyncio
import random
import re
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, get_args

from pydantic import Field

from deploykit.methods import Frozen

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")  # a header X-Request-ID of this form is the request's id
Scope = Literal["predict", "explain", "metrics", "docs", "admin"]  # what a key may do; no route needs `admin` today
SCOPES: tuple[Scope, ...] = get_args(Scope)


class ClientLimits(Frozen):
    """How much a client may send; None is no limit. `concurrency` limits requests in progress, in each replica."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    requests_per_day: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1)


LIMIT_NAMES = tuple(ClientLimits.model_fields)  # also fields of `Client`


@dataclass(frozen=True)
class Client:
    """Who sends requests: a name that is safe to log and to count by, the id of the key, and `ClientLimits`."""

    name: str
    key_id: str = ""
    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass
class Call:
    """The state of one request; points in time are by `perf_counter`.

    Attributes:
        id: of the request.
        client: who sent it.
        disconnected: finished once the client has disconnected; None until the body is read.
        timeout_s: seconds until the deadline that the client sent, if any.
        input_count: number of texts, or of other inputs.
        token_count: tokens of all inputs.
        tokenize_s: seconds in the tokenizer and in its queue.
        queue_s: seconds in the engine's queue.
        inference_s: seconds in the engine.
        start: when the request arrived.
        phases: start and end of each step, by its name.
        trace_id: of the trace; empty if none is sent.
        large: whether the answer is so large that it is decoded and serialized outside the event loop.
    """

    id: str
    client: Client
    disconnected: asyncio.Future[None] | None = None
    timeout_s: float | None = None
    input_count: int = 0
    token_count: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    start: float = field(default_factory=perf_counter)
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    trace_id: str = ""
    large: bool = False

    def server_timing(self) -> str:
        """Returns the value of the header Server-Timing (W3C): milliseconds of each step, and in total."""
        steps = {"tokenize": self.tokenize_s, "queue": self.queue_s, "inference": self.inference_s}
        seconds = {**(steps if self.input_count else {}), "total": perf_counter() - self.start}
        return ", ".join(f"{name};dur={value * 1000:.2f}" for name, value in seconds.items())

    def mark_disconnected(self) -> None:
        """Marks the client as disconnected, so that waits for this request end."""
        if self.disconnected is not None and not self.disconnected.done():
            self.disconnected.set_result(None)


def new_request_id() -> str:
    """Makes an id for a request that has no valid one; it is no secret."""
    return f"{random.getrandbits(128):032x}"
