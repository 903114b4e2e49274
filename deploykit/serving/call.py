"""One request on its way through the service: who sent it, and what it has cost so far.

The guard makes a `Call`, and every step adds the figures that the log line, the trace and `Server-Timing` report.
"""

import asyncio
import random
import re
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, get_args

from pydantic import Field

from deploykit.methods import Frozen

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # an X-Request-ID of this form becomes the id of the request
Scope = Literal["predict", "explain", "metrics", "docs", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class ClientLimits(Frozen):
    """How much a client may send; None is no limit. `concurrency` counts requests in progress in each replica."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    requests_per_day: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1)


LIMITS = tuple(ClientLimits.model_fields)


@dataclass(frozen=True)
class Client:
    """Who sends requests: a name that is safe to log and to count by, the id of the key, and `ClientLimits`."""

    name: str
    key: str = ""
    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass
class Call:
    """The state of one request.

    `gone` is done once the client has disconnected; `timeout_s` is the client's own deadline, if it sent one; `large`
    means that the answer is decoded and serialized outside the event loop; `phases` maps the name of each step to its
    start and end, on the clock of `start`; `trace` is the trace id, if traces are sent.
    """

    id: str
    client: Client
    gone: asyncio.Future[None] | None = None
    timeout_s: float | None = None
    items: int = 0
    tokens: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    start: float = field(default_factory=perf_counter)
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    trace: str = ""
    large: bool = False

    def timing(self) -> str:
        """Returns the value of the header Server-Timing (W3C): milliseconds of each step, and in total."""
        steps = {"tokenize": self.tokenize_s, "queue": self.queue_s, "inference": self.inference_s}
        seconds = {**(steps if self.items else {}), "total": perf_counter() - self.start}
        return ", ".join(f"{name};dur={value * 1000:.2f}" for name, value in seconds.items())

    def leave(self) -> None:
        """Marks the client as disconnected."""
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)


def new_id() -> str:
    """Makes an id for a request that brings none; it is no secret."""
    return f"{random.getrandbits(128):032x}"
