"""Requests in the engine's queue: a job is one request, an item is one text of it, or one window of a long text."""

import asyncio
from dataclasses import dataclass, field
from math import inf
from time import perf_counter

from deploykit.serving.problems import CLIENT_GONE_STATUS, Problem
from deploykit.tasks import Arrays
from deploykit.tokenizer import Features

DEADLINE_DETAIL = "no answer before the deadline of this request. Send fewer texts, allow more time, or try again"
DISCONNECT_DETAIL = "the client has left"


@dataclass
class Timing:
    """Where the time of a request went; all times are in seconds, points in time by `perf_counter`.

    Attributes:
        queue_s: the longest wait of one of its items.
        inference_s: the longest batch that contained one of its items.
        arrived_at: when the request was queued.
        first_batch_start: when the first batch with one of its items started.
        last_batch_end: when the last one ended.
    """

    queue_s: float = 0.0
    inference_s: float = 0.0
    arrived_at: float = field(default_factory=perf_counter)
    first_batch_start: float = inf
    last_batch_end: float = 0.0

    def add_batch(self, start: float, seconds: float) -> None:
        """Adds a batch that contained items of the request."""
        self.inference_s = max(self.inference_s, seconds)
        self.first_batch_start = min(self.first_batch_start, start)
        self.last_batch_end = start + seconds


@dataclass(eq=False)
class Item:
    """One text of a request, or one window of a long text: what the engine reads at once.

    Attributes:
        job: the request.
        index: position among the items of the request.
        features: the encoded text.
        padded_tokens: tokens to which the engine pads the item if it runs alone.
        seconds: predicted time of the engine if the item runs alone.
        arrived_at: when it was queued, by `perf_counter`.
    """

    job: "Job"
    index: int
    features: Features
    padded_tokens: int
    seconds: float
    arrived_at: float = field(default_factory=perf_counter)

    def __len__(self) -> int:
        """Returns the tokens of the item, without padding."""
        return len(self.features)


@dataclass(eq=False)
class Job:
    """One request in the queue.

    Attributes:
        client: name of its client.
        done: finished when all items have outputs, or when the first one fails.
        outputs: of the model for each item; None until the item has run.
        remaining_items: how many items have no outputs yet.
        estimated_wait_s: until its last item enters the engine; 0 if that is too short to learn from.
        timing: where its time went.
    """

    client: str
    done: asyncio.Future[None]
    outputs: list[Arrays | None]
    remaining_items: int
    estimated_wait_s: float = 0.0
    timing: Timing = field(default_factory=Timing)

    def set_outputs(self, index: int, outputs: Arrays) -> None:
        """Stores the outputs of the model for one item."""
        self.outputs[index] = outputs
        self.remaining_items -= 1
        if not self.remaining_items and not self.done.done():
            self.done.set_result(None)


def fail(done: asyncio.Future[None], error: Exception) -> None:
    """Ends the wait for a request with an error, unless the request is done."""
    if not done.done():
        done.set_exception(error)


async def wait_until_done(
    done: asyncio.Future[None], timeout_s: float, disconnected: asyncio.Future[None] | None
) -> None:
    """Waits for a request, at most until its deadline passes or its client disconnects; later results are dropped.

    Args:
        done: finished when the request is.
        timeout_s: seconds until the deadline.
        disconnected: finished when the client has disconnected.

    Raises:
        Problem: 504 the deadline has passed, 499 the client has disconnected.
    """
    if disconnected is not None:
        disconnected.add_done_callback(
            lambda _: fail(done, Problem(CLIENT_GONE_STATUS, "client_gone", DISCONNECT_DETAIL))
        )
    try:
        async with asyncio.timeout(timeout_s):
            await done
    except TimeoutError:
        raise Problem(504, "deadline", DEADLINE_DETAIL) from None
    finally:
        done.cancel()
