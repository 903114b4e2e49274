"""Batches texts of concurrent requests: an asyncio queue in front of the engine's threads, one thread per stream.

The queue is work-conserving: an idle stream starts at once, and batches form while all streams are busy; there is no
timer. Each batch starts with the next text in turn (`fair_queue`), so no text starves, and a rule (`batch_rules`) adds
others. Streams that are idle at the same time divide the waiting texts. Texts whose deadline has passed or whose client
has left are dropped before they run. A request that would wait too long (`wait_estimate`) is refused at once.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil, inf
from time import perf_counter, thread_time

from deploykit.artifact.cost import Cost, LearnedCost
from deploykit.serving.problems import Problem, busy
from deploykit.serving.queue import jobs
from deploykit.serving.queue.batch_rules import Bounds, Rule, by_cost
from deploykit.serving.queue.fair_queue import FairQueue
from deploykit.serving.queue.jobs import Item, Job, Timing
from deploykit.serving.queue.wait_estimate import WaitEstimator
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Arrays
from deploykit.tokenizer import Features

MAX_CANDIDATES = 1024  # waiting texts considered for one batch: bounds the time on the event loop
MIN_LEARNED_ESTIMATE_SHARE = 0.1  # of the longest allowed wait; waits with shorter estimates are not learned from
HARD_LIMIT_RATIO = 2  # times `queue_tokens`; between the two limits, only clients below their fair share are admitted
Compute = Callable[[Sequence[Features]], Sequence[Arrays]]
Shape = Callable[[int, int], tuple[int, int]]
logger = logging.getLogger("deploykit.serving")


class Batcher:
    """The queue and the engine's threads.

    Args:
        compute: runs one batch; called in the engine's threads only.
        bounds: limits of batches and queue.
        metrics: counts queue and batches.
        cost: predicts the seconds of a batch, as the selection fitted it; default: of a small encoder.
        streams: number of batches that run at the same time.
        choose: chooses which waiting texts share a batch.
        shape: returns the rows and tokens to which the engine pads a batch; batches avoid padded rows.
        clock: of an engine's thread, in seconds, for learning the cost of batches. It is CPU time, so that other work
            of this process on the same core does not count as a fixed cost per batch.
    """

    def __init__(
        self,
        compute: Compute,
        bounds: Bounds,
        metrics: Metrics,
        cost: Cost | None = None,
        streams: int = 1,
        choose: Rule = by_cost,
        shape: Shape = lambda rows, tokens: (rows, tokens),
        clock: Callable[[], float] = thread_time,
    ) -> None:
        self._compute, self._choose, self._shape, self._clock = compute, choose, shape, clock
        self._bounds, self._metrics, self._streams = bounds, metrics, streams
        self._cost = LearnedCost(cost or Cost())
        self._waiting: FairQueue[Item] = FairQueue()
        self._waits = WaitEstimator(streams)
        self._excess = (
            0  # tokens by which requests that an empty queue let in exceed its limit: not counted against others
        )
        self._workers: set[asyncio.Task[None] | None] = set()
        self._starts: list[float] = []  # of the running batches
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="engine")

    @property
    def oldest_start(self) -> float | None:
        """Start of the oldest batch that still runs, by `perf_counter`; None if none does."""
        return min(self._starts, default=None)

    @property
    def oldest_batch_s(self) -> float:
        """Age of the oldest batch that still runs, in seconds, which liveness limits to `stuck_s`; 0 if none runs."""
        start = self.oldest_start
        return 0.0 if start is None else perf_counter() - start

    def waiting(self) -> tuple[int, int, float]:
        """Returns the number of waiting texts, their tokens and the longest wait in seconds; thread-safe."""
        now, queue = perf_counter(), self._waiting
        return len(queue), queue.tokens, max((now - item.since for item in queue), default=0.0)

    async def submit(
        self,
        features: Sequence[Features],
        timeout_s: float,
        disconnect: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> tuple[list[Arrays], Timing]:
        """Queues what the model reads of a request and waits for the outputs; refuses it if that would take too long.

        Args:
            features: at least one.
            timeout_s: seconds until the deadline of the request.
            disconnect: done when the client has left.
            client: name of the client; clients share the engine fairly.

        Returns:
            The outputs for each of the features, and the times of the request.

        Raises:
            Problem: 503 the queue is full or the wait would be too long, 504 the deadline has passed, 499 the
                client left, 500 the engine failed on one of these texts.
        """
        estimate_s = self.check(client, list(map(len, features)), timeout_s)
        done = asyncio.get_running_loop().create_future()
        job = Job(client, done, [None] * len(features), len(features))
        items = [
            Item(job, index, part, self._shape(1, len(part))[1], self._alone_s(len(part)))
            for index, part in enumerate(features)
        ]
        if estimate_s > MIN_LEARNED_ESTIMATE_SHARE * self._bounds.wait_s:
            job.estimate_s = estimate_s + self._waits.estimate_s(sum(item.seconds for item in items[:-1]))
        excess = max(sum(map(len, features)) - self._bounds.queue_tokens, 0)
        self._excess += excess
        self._enter(items)
        try:
            await jobs.wait(done, timeout_s, disconnect)
        finally:
            self._excess -= excess
            if items[-1] in self._waiting and perf_counter() - items[-1].since > job.estimate_s:
                self._learn_wait(items[-1])  # the full wait would have been even longer
            for item in items:
                self._waiting.discard(item)
        return [outputs for outputs in job.outputs if outputs is not None], job.timing

    def close(self) -> None:
        """Ends the engine's threads after their current batches, without waiting for them: an engine may hang."""
        self._pool.shutdown(wait=False)

    def check(self, client: str, lengths: Sequence[int] = (), timeout_s: float = inf) -> float:
        """Refuses a request that would wait too long or exceed the queue's limit.

        A client below its fair share of the queue is admitted up to a higher limit.

        Args:
            client: name of the client.
            lengths: of all texts of the request, in tokens; empty if not yet known.
            timeout_s: seconds until the deadline of the request.

        Returns:
            The estimated wait of the request, in seconds.

        Raises:
            Problem: 503 the queue is full or the wait would be too long, 504 the deadline has passed.
        """
        if timeout_s <= 0:
            raise Problem(504, "deadline", jobs.DEADLINE_DETAIL)
        queue, limit = self._waiting, self._bounds.queue_tokens
        if not queue:
            return 0.0
        tokens = sum(lengths)
        total, own = queue.tokens + tokens, queue.tokens_of(client) + tokens
        above_share = own > limit / queue.clients_with(client)
        full = total > limit and (above_share or total > HARD_LIMIT_RATIO * limit + self._excess)
        estimate_s = self._waits.estimate_s(queue.ahead_of(client, sum(map(self._alone_s, lengths))))
        if full or estimate_s * self._waits.margin > min(timeout_s, self._bounds.wait_s):
            raise busy(self._waits.estimate_s(queue.seconds))
        return estimate_s

    def _learn_wait(self, item: Item) -> None:
        if item.job.estimate_s and item.index == len(item.job.outputs) - 1:
            self._waits.learn_wait(perf_counter() - item.since, item.job.estimate_s)

    def _alone_s(self, tokens: int) -> float:
        """Predicts the seconds of one text that runs alone."""
        return self._cost.current.seconds(1, tokens)

    def _enter(self, items: Sequence[Item]) -> None:
        for item in items:
            self._waiting.add(item)
        for _ in range(min(len(items), self._streams - len(self._workers))):
            self._workers.add(asyncio.get_running_loop().create_task(self._work()))

    async def _work(self) -> None:
        """Runs one batch after the other until no text waits."""
        task = asyncio.current_task()
        try:
            while batch := self._next_batch():
                await self._run(batch)
        finally:  # not in a callback: a text that arrives before the callback runs would get no worker
            self._workers.discard(task)

    def _next_batch(self) -> list[Item]:
        while self._waiting and (first := self._waiting.first()).job.done.done():
            self._waiting.discard(first)
        if not self._waiting:
            return []
        candidates = self._waiting.fillers(MAX_CANDIDATES)
        items = [first, *(item for item in candidates if item is not first and not item.job.done.done())]
        share = ceil(len(items) / (self._streams - len(self._starts)))
        bounds = self._bounds._replace(batch_items=min(share, self._bounds.batch_items))
        positions, reason = self._choose([item.width for item in items], self._cost.current, bounds)
        while self._shape(len(positions), 1)[0] > len(positions):
            positions.pop()
            reason = "shape"
        self._metrics.batches.labels(reason).inc()
        batch, now = [items[position] for position in positions], perf_counter()
        for item in batch:
            self._waiting.take(item)
            self._learn_wait(item)
            item.job.timing.queue_s = max(item.job.timing.queue_s, now - item.since)
            self._metrics.queue_seconds.observe(now - item.since)
        return batch

    async def _run(self, batch: Sequence[Item]) -> None:
        """Runs a batch; if it fails, runs its items one by one, so that only requests with a failing text fail."""
        try:
            for item, outputs in zip(batch, await self._timed(batch), strict=True):
                item.job.put(item.index, outputs)
        except Exception as error:
            if len(batch) == 1:
                logger.error("the engine failed on a text of %d tokens", len(batch[0]), exc_info=error)
                jobs.fail(batch[0].job.done, Problem(500, "failed", "the model failed on one of these texts"))
                return
            self._metrics.batch_retries.inc()
            for item in batch:
                if not item.job.done.done():
                    await self._run([item])

    async def _timed(self, batch: Sequence[Item]) -> Sequence[Arrays]:
        start = perf_counter()
        self._starts.append(start)
        width = max(item.width for item in batch)
        features = [item.features for item in batch]
        try:
            loop = asyncio.get_running_loop()
            outputs, compute_s = await loop.run_in_executor(self._pool, self._clocked, features)
        finally:
            self._starts.remove(start)
        seconds = perf_counter() - start
        self._waits.learn_batch(seconds, sum(item.seconds for item in batch))
        self._cost.learn(len(batch), width, compute_s)
        for item in batch:
            item.job.timing.add(start, seconds)
        self._metrics.batched([len(item) for item in batch], width, seconds)
        return outputs

    def _clocked(self, features: Sequence[Features]) -> tuple[Sequence[Arrays], float]:
        """Runs a batch in an engine's thread; returns its outputs and the seconds by the thread's clock."""
        start = self._clock()
        outputs = self._compute(features)
        return outputs, self._clock() - start
