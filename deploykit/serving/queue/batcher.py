"""Batches texts of concurrent requests: an asyncio queue in front of the engine's threads, one thread per stream.

There is no timer: an idle stream starts at once, and batches form while all streams are busy. Each batch starts with
the text whose turn it is (`fair_queue`), so no text starves, and a rule (`batch_rules`) adds others. Streams that are
idle at the same time divide the waiting texts. Texts whose deadline has passed or whose client has disconnected are
dropped before they run. A request that would wait too long (`wait_estimate`) is refused at once.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil, inf
from time import perf_counter, thread_time

from deploykit.artifact.cost import Cost, LearnedCost
from deploykit.serving.problems import Problem, queue_full_problem
from deploykit.serving.queue import jobs
from deploykit.serving.queue.batch_rules import BatchRule, Bounds, choose_by_cost
from deploykit.serving.queue.fair_queue import FairQueue
from deploykit.serving.queue.jobs import Item, Job, Timing
from deploykit.serving.queue.wait_estimate import WaitEstimator
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Arrays
from deploykit.tokenizer import Features

MAX_CANDIDATES = 1024  # waiting texts that are considered for one batch: bounds the time on the event loop
MIN_LEARNED_ESTIMATE_SHARE = 0.1  # of the longest allowed wait; shorter estimates do not correct the estimator
# The hard limit of the queue is this times `queue_tokens`. Between the two limits, only clients below their fair share
# are admitted.
HARD_LIMIT_RATIO = 2
Compute = Callable[[Sequence[Features]], Sequence[Arrays]]  # runs a batch; returns the outputs of each text
PaddedShape = Callable[[int, int], tuple[int, int]]  # from rows and tokens of a batch to those of the padded batch

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
        padded_shape: returns the rows and tokens to which the engine pads a batch; batches avoid padded rows.
        clock: reads the time of the engine's thread in seconds, for learning the cost of batches. The default is CPU
            time, so that other work of this process on the same core does not count as a fixed cost per batch.
    """

    def __init__(
        self,
        compute: Compute,
        bounds: Bounds,
        metrics: Metrics,
        cost: Cost | None = None,
        streams: int = 1,
        choose: BatchRule = choose_by_cost,
        padded_shape: PaddedShape = lambda rows, tokens: (rows, tokens),
        clock: Callable[[], float] = thread_time,
    ) -> None:
        self._compute, self._choose, self._padded_shape, self._clock = compute, choose, padded_shape, clock
        self._bounds, self._metrics, self._streams = bounds, metrics, streams
        self._cost = LearnedCost(cost or Cost())
        self._waiting: FairQueue[Item] = FairQueue()
        self._wait_estimator = WaitEstimator(streams)
        # An empty queue admits even a request above its limit; the tokens above it are not counted against others.
        self._excess_tokens = 0
        self._workers: set[asyncio.Task[None] | None] = set()
        self._batch_starts: list[float] = []  # of the running batches, by `perf_counter`
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="engine")

    @property
    def oldest_batch_start(self) -> float | None:
        """When the oldest running batch started, by `perf_counter`; None if none runs."""
        return min(self._batch_starts, default=None)

    @property
    def oldest_batch_age_s(self) -> float:
        """How long the oldest running batch has run, in seconds; 0 if none runs."""
        start = self.oldest_batch_start
        return 0.0 if start is None else perf_counter() - start

    def queue_state(self) -> tuple[int, int, float]:
        """Returns the number of waiting texts, their tokens, and the longest wait in seconds; thread-safe."""
        now, queue = perf_counter(), self._waiting
        return len(queue), queue.total_tokens, max((now - item.arrived_at for item in queue), default=0.0)

    async def submit(
        self,
        features: Sequence[Features],
        timeout_s: float,
        disconnected: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> tuple[list[Arrays], Timing]:
        """Queues the encoded texts of a request, and waits for the outputs of the model.

        Args:
            features: of each text, or of each window of a long text; at least one.
            timeout_s: seconds until the deadline of the request.
            disconnected: finished when the client has disconnected.
            client: name of the client; clients share the engine fairly.

        Returns:
            The outputs for each of the features, and the times of the request.

        Raises:
            Problem: 503 the queue is full or the wait would be too long, 504 the deadline has passed, 499 the
                client has disconnected, 500 the engine failed on one of these texts.
        """
        estimate_s = self.admit(client, list(map(len, features)), timeout_s)
        done = asyncio.get_running_loop().create_future()
        job = Job(client, done, [None] * len(features), len(features))
        items = [
            Item(job, index, window, self._padded_shape(1, len(window))[1], self._alone_s(len(window)))
            for index, window in enumerate(features)
        ]
        if estimate_s > MIN_LEARNED_ESTIMATE_SHARE * self._bounds.wait_s:
            job.estimated_wait_s = estimate_s + self._wait_estimator.estimate_s(
                sum(item.seconds for item in items[:-1])
            )
        excess_tokens = max(sum(map(len, features)) - self._bounds.queue_tokens, 0)
        self._excess_tokens += excess_tokens
        self._enqueue(items)
        try:
            await jobs.wait_until_done(done, timeout_s, disconnected)
        finally:
            self._excess_tokens -= excess_tokens
            if items[-1] in self._waiting and perf_counter() - items[-1].arrived_at > job.estimated_wait_s:
                self._learn_wait(items[-1])  # given up, and the full wait would have been even longer
            for item in items:
                self._waiting.discard(item)
        return [outputs for outputs in job.outputs if outputs is not None], job.timing

    def close(self) -> None:
        """Ends the engine's threads after their current batches, without waiting for them: an engine may hang."""
        self._pool.shutdown(wait=False)

    def admit(self, client: str, lengths: Sequence[int] = (), timeout_s: float = inf) -> float:
        """Estimates the wait of a request, or refuses it if it would wait too long or exceed the queue's limit.

        A client below its fair share of the queue is admitted up to the hard limit. Nothing is queued.

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
        request_tokens = sum(lengths)
        total_tokens = queue.total_tokens + request_tokens
        client_tokens = queue.client_tokens(client) + request_tokens
        above_share = client_tokens > limit / queue.client_count_with(client)
        above_hard_limit = total_tokens > HARD_LIMIT_RATIO * limit + self._excess_tokens
        full = total_tokens > limit and (above_share or above_hard_limit)
        work_ahead_s = queue.work_ahead_s(client, sum(map(self._alone_s, lengths)))
        estimate_s = self._wait_estimator.estimate_s(work_ahead_s)
        if full or estimate_s * self._wait_estimator.margin > min(timeout_s, self._bounds.wait_s):
            raise queue_full_problem(self._wait_estimator.estimate_s(queue.total_s))
        return estimate_s

    def _learn_wait(self, item: Item) -> None:
        """Learns how long an item has waited, if it is the last of its request: the estimate is of that one's wait."""
        if item.job.estimated_wait_s and item.index == len(item.job.outputs) - 1:
            self._wait_estimator.learn_wait(perf_counter() - item.arrived_at, item.job.estimated_wait_s)

    def _alone_s(self, tokens: int) -> float:
        """Predicts the seconds of one text of so many tokens that runs alone."""
        return self._cost.current.seconds(1, tokens)

    def _enqueue(self, items: Sequence[Item]) -> None:
        """Adds items to the queue, and starts workers for idle streams."""
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
        """Takes the items of the next batch from the queue; none if no item waits."""
        # requests may have failed or ended while their items waited
        while self._waiting and (first := self._waiting.next_item()).job.done.done():
            self._waiting.discard(first)
        if not self._waiting:
            return []
        candidates = self._waiting.batch_candidates(MAX_CANDIDATES)
        items = [first, *(item for item in candidates if item is not first and not item.job.done.done())]
        idle_streams = self._streams - len(self._batch_starts)
        items_per_stream = ceil(len(items) / idle_streams)
        bounds = self._bounds._replace(batch_items=min(items_per_stream, self._bounds.batch_items))
        positions, reason = self._choose([item.padded_tokens for item in items], self._cost.current, bounds)
        while self._padded_shape(len(positions), 1)[0] > len(positions):  # the engine would add rows
            positions.pop()
            reason = "shape"
        self._metrics.batches.labels(reason).inc()
        batch, now = [items[position] for position in positions], perf_counter()
        for item in batch:
            self._waiting.take(item)
            self._learn_wait(item)
            item.job.timing.queue_s = max(item.job.timing.queue_s, now - item.arrived_at)
            self._metrics.queue_seconds.observe(now - item.arrived_at)
        return batch

    async def _run(self, batch: Sequence[Item]) -> None:
        """Runs a batch, and stores its outputs or its failure in the jobs.

        If a batch of several items fails, each is run again alone, so that only requests with a failing text fail.
        """
        try:
            for item, outputs in zip(batch, await self._run_timed(batch), strict=True):
                item.job.set_outputs(item.index, outputs)
        except Exception as error:
            if len(batch) == 1:
                logger.error("the engine failed on a text of %d tokens", len(batch[0]), exc_info=error)
                jobs.fail(batch[0].job.done, Problem(500, "failed", "the model failed on one of these texts"))
                return
            self._metrics.batch_retries.inc()
            for item in batch:
                if not item.job.done.done():
                    await self._run([item])

    async def _run_timed(self, batch: Sequence[Item]) -> Sequence[Arrays]:
        """Runs a batch in an engine's thread, and learns from its time; returns the outputs of each item."""
        start = perf_counter()
        self._batch_starts.append(start)
        padded_tokens = max(item.padded_tokens for item in batch)
        features = [item.features for item in batch]
        try:
            loop = asyncio.get_running_loop()
            outputs, compute_s = await loop.run_in_executor(self._pool, self._compute_clocked, features)
        finally:
            self._batch_starts.remove(start)
        seconds = perf_counter() - start
        self._wait_estimator.learn_batch(seconds, sum(item.seconds for item in batch))
        self._cost.learn(len(batch), padded_tokens, compute_s)
        for item in batch:
            item.job.timing.add_batch(start, seconds)
        self._metrics.count_batch([len(item) for item in batch], padded_tokens, seconds)
        return outputs

    def _compute_clocked(self, features: Sequence[Features]) -> tuple[Sequence[Arrays], float]:
        """Runs a batch in the calling thread; returns its outputs and the seconds by that thread's clock."""
        start = self._clock()
        outputs = self._compute(features)
        return outputs, self._clock() - start
