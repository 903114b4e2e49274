"""Which texts share a batch: an asyncio queue in front of the engine's threads, one for each of its streams.

Work-conserving: an idle stream starts at once, and batches form while all are busy; there is no timer. Each
batch is built around the text whose turn it is (see `fairness`), so nobody starves; which others share it is a rule
of `batches`. Streams that are idle together share what waits. Texts whose request has met its deadline, or whose
client has left, are dropped before they are computed, and who would wait for too long (see `waits`) is refused at once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil, inf
from time import perf_counter, thread_time

from deploykit.artifact.cost import Cost, Learned
from deploykit.serving.problems import CLIENT_GONE, Problem, busy
from deploykit.serving.queue.batch_rules import Bounds, Choose, by_cost
from deploykit.serving.queue.fair_queue import FairQueue
from deploykit.serving.queue.wait_estimate import Waits
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Float32
from deploykit.tokenizer import Encoding

SCANNED = 1024  # waiting texts that are looked at for one batch: bounds the time on the event loop
LATE = "no answer in the time that this service allows: it is busy. Send fewer texts at once, or try again"
GONE = "the client has left"
LONG = 0.1  # of the bound of the wait: from where on an estimate is compared with what came of it
HARD = 2  # times the bound of the queue: room for clients that have their share of it yet to come

Compute = Callable[[Sequence[str], Sequence[Encoding]], Sequence[Float32]]
Shape = Callable[[int, int], tuple[int, int]]
logger = logging.getLogger("deploykit.serving")


@dataclass
class Timing:
    """The longest, in seconds, that a text of a request waited, and that it was in the engine.

    Also when its texts began to wait, were first in the engine, and last left it.
    """

    queue_s: float = 0.0
    inference_s: float = 0.0
    since: float = field(default_factory=perf_counter)
    begun: float = inf
    ended: float = 0.0

    def ran(self, start: float, seconds: float) -> None:
        """Notes a batch that held some of its texts."""
        self.inference_s = max(self.inference_s, seconds)
        self.begun, self.ended = min(self.begun, start), start + seconds


@dataclass(eq=False)
class Item:
    """One text of a request; `width` is to how many tokens the engine pads it, and `seconds` what it takes, alone."""

    job: "Job"
    index: int
    text: str
    encoding: Encoding
    width: int
    seconds: float
    since: float = field(default_factory=perf_counter)

    def __len__(self) -> int:
        return len(self.encoding)


@dataclass(eq=False)
class Job:
    """One request: done when all its items have scores, or with the first that fails."""

    client: str
    done: asyncio.Future[None]
    scores: list[Float32 | None]
    left: int
    estimate_s: float = 0.0  # until its last text is in the engine; 0 where that is too short to learn from
    timing: Timing = field(default_factory=Timing)

    def put(self, index: int, scores: Float32) -> None:
        """Stores the scores of one item."""
        self.scores[index] = scores
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Ends the request, unless it has ended."""
        if not self.done.done():
            self.done.set_exception(error)


class Batcher:
    """The queue and the threads behind it.

    Args:
        compute: runs one batch; called in the engine's threads only.
        bounds: see `Bounds`.
        metrics: where queue and batches are counted.
        cost: what batches cost where it was measured; default: of a small encoder.
        streams: how many batches run at the same time.
        choose: which of those that wait share a batch.
        shape: to how many texts and tokens the engine pads a batch: what needs no padding shares one.
        clock: of an engine's thread, in seconds, by which batches are compared. Of the processor's time, because what
            else this process does on the same core comes on top of each batch, and would look like a price for each.
    """

    def __init__(
        self,
        compute: Compute,
        bounds: Bounds,
        metrics: Metrics,
        cost: Cost | None = None,
        streams: int = 1,
        choose: Choose = by_cost,
        shape: Shape = lambda rows, tokens: (rows, tokens),
        clock: Callable[[], float] = thread_time,
    ) -> None:
        self._compute, self._choose, self._shape, self._clock = compute, choose, shape, clock
        self._bounds = bounds
        self._metrics = metrics
        self._cost = Learned(cost or Cost())
        self._streams = streams
        self._waiting: FairQueue[Item] = FairQueue()
        self._waits = Waits(streams)
        self._excess = 0  # tokens over the bound of requests that nobody waited before: no others are refused for them
        self._workers: set[asyncio.Task[None] | None] = set()
        self._starts: list[float] = []  # of the batches that are in the engine
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="engine")

    @property
    def began(self) -> float | None:
        """When the batch began that is longest in the engine, by `perf_counter`; None when it is idle."""
        return min(self._starts, default=None)

    @property
    def busy_s(self) -> float:
        """Seconds that this batch has been there; 0 when the engine is idle."""
        began = self.began
        return 0.0 if began is None else perf_counter() - began

    def waiting(self) -> tuple[int, int, float]:
        """Returns how many texts wait, their tokens, and the most seconds that one has waited; any thread may ask."""
        now, queue = perf_counter(), self._waiting
        return len(queue), queue.tokens, max((now - item.since for item in queue), default=0.0)

    async def submit(
        self,
        texts: Sequence[str],
        encodings: Sequence[Encoding],
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> tuple[list[Float32], Timing]:
        """Waits for the scores of a request.

        Args:
            texts: at least one.
            encodings: what the tokenizer made of them.
            timeout_s: how long the client will wait, in seconds.
            gone: done when the client has left.
            client: who asks; clients share the engine.

        Returns:
            One array `(units, labels)` a text, and the longest that one of them waited and took.

        Raises:
            Problem: 503 the queue is full or the wait would be too long, 504 the deadline has passed, 499 the
                client left, 500 the engine failed on one of these texts.
        """
        estimate = self.check(client, list(map(len, encodings)), timeout_s)
        done = asyncio.get_running_loop().create_future()
        job = Job(client, done, [None] * len(texts), len(texts))
        items = [
            Item(job, index, text, encoding, self._shape(1, len(encoding))[1], self._alone(len(encoding)))
            for index, (text, encoding) in enumerate(zip(texts, encodings, strict=True))
        ]
        if gone is not None:
            gone.add_done_callback(lambda _: job.fail(Problem(CLIENT_GONE, "client_gone", GONE)))
        if estimate > LONG * self._bounds.wait_s:
            job.estimate_s = estimate + self._waits.takes(sum(item.seconds for item in items[:-1]))
        excess = max(sum(map(len, encodings)) - self._bounds.queue_tokens, 0)
        self._excess += excess
        self._enter(items)
        try:
            async with asyncio.timeout(timeout_s):
                await job.done
        except TimeoutError:
            raise Problem(504, "deadline", LATE) from None
        finally:
            job.done.cancel()  # items that the engine still holds have nobody to tell
            self._excess -= excess
            if items[-1] in self._waiting and perf_counter() - items[-1].since > job.estimate_s:
                self._learn(items[-1])  # who did not wait to the end would have waited longer
            self._leave(items)
        return [scores for scores in job.scores if scores is not None], job.timing

    def close(self) -> None:
        """Ends the engine's threads once they are done; does not wait, because an engine may be stuck."""
        self._pool.shutdown(wait=False)

    def check(self, client: str, lengths: Sequence[int] = (), timeout_s: float = inf) -> float:
        """Refuses what would have to wait too long; a client that waits for little is not made to pay for others.

        Args:
            client: who asks.
            lengths: of all texts of the request, in tokens, once they are known.
            timeout_s: how long the client will wait, in seconds.

        Returns:
            An estimate of the seconds that the request will wait.

        Raises:
            Problem: 503 the queue is full, or the wait would be too long, 504 the deadline has passed.
        """
        if timeout_s <= 0:
            raise Problem(504, "deadline", LATE)
        queue, tokens, most = self._waiting, sum(lengths), self._bounds.queue_tokens
        total, own = queue.tokens + tokens, queue.tokens_of(client) + tokens
        full = total > most and (own > most / queue.sharing(client) or total > HARD * most + self._excess)
        estimate = self._waits.takes(queue.ahead_of(client, sum(map(self._alone, lengths))))
        if queue and (full or estimate * self._waits.margin > min(timeout_s, self._bounds.wait_s)):
            raise busy(self._waits.takes(queue.seconds))
        return estimate

    def _learn(self, item: Item) -> None:
        if item.job.estimate_s and item.index == len(item.job.scores) - 1:
            self._waits.waited(perf_counter() - item.since, item.job.estimate_s)

    def _alone(self, tokens: int) -> float:
        """Estimates the seconds of one text."""
        return self._cost.now.seconds(1, tokens)

    def _enter(self, items: Sequence[Item]) -> None:
        for item in items:
            self._waiting.add(item)
        for _ in range(min(len(items), self._streams - len(self._workers))):
            self._workers.add(asyncio.get_running_loop().create_task(self._work()))

    def _leave(self, items: Iterable[Item]) -> None:
        for item in items:
            self._waiting.discard(item)

    async def _work(self) -> None:
        """Runs batches, one after the other, until nobody waits."""
        task = asyncio.current_task()
        try:
            while batch := self._next():
                await self._run(batch)
        finally:  # and not in a callback: until that runs, a text that comes would find nobody
            self._workers.discard(task)

    def _next(self) -> list[Item]:
        while self._waiting and (first := self._waiting.first()).job.done.done():
            self._leave([first])
        if not self._waiting:
            return []
        others = self._waiting.others(SCANNED)
        seen = [first, *(item for item in others if item is not first and not item.job.done.done())]
        share = ceil(len(seen) / (self._streams - len(self._starts)))
        bounds = replace(self._bounds, batch_items=min(share, self._bounds.batch_items))
        positions, release = self._choose([item.width for item in seen], self._cost.now, bounds)
        while self._shape(len(positions), 1)[0] > len(positions):
            positions.pop()
            release = "shape"
        self._metrics.batches.labels(release).inc()
        batch, now = [seen[position] for position in positions], perf_counter()
        for item in batch:
            self._waiting.take(item)
            self._learn(item)
            item.job.timing.queue_s = max(item.job.timing.queue_s, now - item.since)
            self._metrics.queue_seconds.observe(now - item.since)
        return batch

    async def _run(self, batch: Sequence[Item]) -> None:
        """Runs a batch; if it fails, its items one by one, so that only the culprit's request fails."""
        try:
            for item, scores in zip(batch, await self._timed(batch), strict=True):
                item.job.put(item.index, scores)
        except Exception as error:
            await self._isolate(batch, error)

    async def _isolate(self, batch: Sequence[Item], error: Exception) -> None:
        if len(batch) == 1:
            logger.error("the engine failed on a text of %d tokens", len(batch[0]), exc_info=error)
            batch[0].job.fail(Problem(500, "failed", "the model failed on one of these texts"))
            return
        self._metrics.batch_retries.inc()
        for item in batch:
            if not item.job.done.done():
                await self._run([item])

    async def _timed(self, batch: Sequence[Item]) -> Sequence[Float32]:
        start = perf_counter()
        self._starts.append(start)
        width = max(item.width for item in batch)
        texts, encodings = [item.text for item in batch], [item.encoding for item in batch]
        try:
            loop = asyncio.get_running_loop()
            found, spent = await loop.run_in_executor(self._pool, self._clocked, texts, encodings)
        finally:
            self._starts.remove(start)
        taken = perf_counter() - start
        self._waits.ran(taken, sum(item.seconds for item in batch))
        self._cost.learn(len(batch), width, spent)
        for item in batch:
            item.job.timing.ran(start, taken)
        self._metrics.batched([len(item) for item in batch], width, taken)
        return found

    def _clocked(self, texts: Sequence[str], encodings: Sequence[Encoding]) -> tuple[Sequence[Float32], float]:
        """Runs a batch in an engine's thread; returns its scores, and the seconds that the thread took for them."""
        start = self._clock()
        found = self._compute(texts, encodings)
        return found, self._clock() - start
