"""What waits in the queue: items of one text, the jobs of requests, and where their time went."""

import asyncio
from dataclasses import dataclass, field
from math import inf
from time import perf_counter

from deploykit.serving.problems import CLIENT_GONE, Problem
from deploykit.tasks import Arrays
from deploykit.tokenizer import Features

DEADLINE_DETAIL = "no answer before the deadline of this request. Send fewer texts, allow more time, or try again"
DISCONNECT_DETAIL = "the client has left"


@dataclass
class Timing:
    """Times of a request: the longest wait of its windows, and their longest batch, in seconds.

    `since`, `begun` and `ended` are readings of the clock: when the request arrived, when its first batch started, and
    when its last batch ended.
    """

    queue_s: float = 0.0
    inference_s: float = 0.0
    since: float = field(default_factory=perf_counter)
    begun: float = inf
    ended: float = 0.0

    def add(self, start: float, seconds: float) -> None:
        """Adds a batch that contained texts of the request."""
        self.inference_s = max(self.inference_s, seconds)
        self.begun, self.ended = min(self.begun, start), start + seconds


@dataclass(eq=False)
class Item:
    """A part of a request that the engine reads at once.

    If it runs alone, the engine pads it to `width` tokens and takes about `seconds`.
    """

    job: "Job"
    index: int
    features: Features
    width: int
    seconds: float
    since: float = field(default_factory=perf_counter)

    def __len__(self) -> int:
        return len(self.features)


@dataclass(eq=False)
class Job:
    """One request; `done` when all its items have outputs, or when the first one fails."""

    client: str
    done: asyncio.Future[None]
    outputs: list[Arrays | None]
    remaining: int
    estimate_s: float = 0.0  # until its last text enters the engine; 0 if that is too short to learn from
    timing: Timing = field(default_factory=Timing)

    def put(self, index: int, outputs: Arrays) -> None:
        """Stores the outputs of the model for one item."""
        self.outputs[index] = outputs
        self.remaining -= 1
        if not self.remaining and not self.done.done():
            self.done.set_result(None)


def fail(done: asyncio.Future[None], error: Exception) -> None:
    """Fails a request, unless it is done."""
    if not done.done():
        done.set_exception(error)


async def wait(done: asyncio.Future[None], timeout_s: float, disconnect: asyncio.Future[None] | None) -> None:
    """Waits until a request is done, its deadline passes or its client leaves; later results are dropped.

    Raises:
        Problem: 504 the deadline has passed, 499 the client left.
    """
    if disconnect is not None:
        disconnect.add_done_callback(lambda _: fail(done, Problem(CLIENT_GONE, "client_gone", DISCONNECT_DETAIL)))
    try:
        async with asyncio.timeout(timeout_s):
            await done
    except TimeoutError:
        raise Problem(504, "deadline", DEADLINE_DETAIL) from None
    finally:
        done.cancel()
