"""What our batching is compared with: BentoML's adaptive batching, and batches in order of arrival.

BentoML's (`batchable=True`) predicts the time of a batch from its number of texts, without tokens or padding; it
computes texts whose client has left or whose deadline has passed; it has no fairness between clients; and it fails a
whole batch because of one text. In its favour, texts arrive tokenized here, and every kind of request can be batched.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from time import perf_counter
from typing import NamedTuple

from bentoml._internal.marshal.dispatcher import CorkDispatcher
from bentoml.exceptions import ServiceUnavailable

from deploykit.artifact import Manifest
from deploykit.artifact.cost import Cost
from deploykit.inference.predictor import Predictor
from deploykit.serving.problems import CLIENT_GONE_STATUS, Problem, queue_full_problem
from deploykit.serving.queue.batch_rules import Bounds, LimitReason
from deploykit.serving.queue.batcher import Batcher, Compute
from deploykit.serving.queue.jobs import DEADLINE_DETAIL, DISCONNECT_DETAIL, Timing
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Arrays
from deploykit.tokenizer import Features

logger = logging.getLogger("deploykit.serving")


class _Text(NamedTuple):
    features: Features
    timing: Timing
    since: float


class BentoMLBatcher:
    """BentoML's queue and one engine thread.

    Args:
        compute: runs one batch; called in the thread only.
        bounds: only the limit of texts per batch is used.
        metrics: counts the batches.
        timeout_s: a text that would wait longer is refused, in seconds.
    """

    def __init__(self, compute: Compute, bounds: Bounds, metrics: Metrics, timeout_s: float) -> None:
        self._compute, self._metrics, self._started = compute, metrics, 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._dispatcher: CorkDispatcher[_Text, Arrays] = CorkDispatcher(
            max_latency_in_ms=round(timeout_s * 1000),
            max_batch_size=bounds.batch_items,
            fallback=_overloaded,
            get_batch_size=lambda _: 1,
        )
        self._call = self._dispatcher(self._run)

    @property
    def oldest_batch_start(self) -> float | None:
        """Start of the running batch; None if the engine is idle."""
        return self._started or None

    @property
    def oldest_batch_age_s(self) -> float:
        """Seconds since the running batch started; 0 if the engine is idle."""
        return perf_counter() - self._started if self._started else 0.0

    def queue_state(self) -> tuple[int, int, float]:
        """Returns zeros, because BentoML's queue does not expose its contents."""
        return 0, 0, 0.0

    def admit(self, client: str, lengths: Sequence[int] = (), timeout_s: float = inf) -> float:
        """Accepts everything, because BentoML's queue is unbounded and gives no estimate."""
        return 0.0

    async def submit(
        self,
        features: Sequence[Features],
        timeout_s: float,
        disconnect: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> tuple[list[Arrays], Timing]:
        """Waits for the outputs of a request; see `Batcher.submit`. The client is ignored."""
        timing = Timing()
        calls = [asyncio.ensure_future(self._call(_Text(part, timing, perf_counter()))) for part in features]
        results = asyncio.gather(*calls)
        if disconnect is not None:
            disconnect.add_done_callback(lambda _: results.cancel())
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return [outputs for outputs in await results if outputs is not None], timing
        except (TimeoutError, ServiceUnavailable, asyncio.CancelledError) as error:
            if disconnect is not None and disconnect.done():  # BentoML reports a cancelled call as unavailable
                raise Problem(CLIENT_GONE_STATUS, "client_gone", DISCONNECT_DETAIL) from None
            if deadline.expired():
                raise Problem(504, "deadline", DEADLINE_DETAIL) from None
            if isinstance(error, ServiceUnavailable):
                raise queue_full_problem(1) from None
            raise
        except Exception as error:
            logger.error("the engine failed on a batch", exc_info=error)
            raise Problem(500, "failed", "the model failed on one of these texts, or on another in the batch") from None

    def close(self) -> None:
        """Ends the thread after its current batch."""
        self._dispatcher.shutdown()
        self._pool.shutdown(wait=False)

    async def _run(self, batch: Sequence[_Text]) -> Sequence[Arrays]:
        self._started = now = perf_counter()
        for item in batch:
            item.timing.queue_s = max(item.timing.queue_s, now - item.since)
            self._metrics.queue_seconds.observe(now - item.since)
        features = [item.features for item in batch]
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._pool, self._compute, features)
        finally:
            self._started = 0.0
        seconds = perf_counter() - now
        for item in batch:
            item.timing.add_batch(now, seconds)
        lengths = list(map(len, features))
        self._metrics.count_batch(lengths, max(lengths), seconds)
        return outputs


def _overloaded() -> Arrays:
    raise ServiceUnavailable("too many texts are waiting")


def in_order(lengths: Sequence[int], _: Cost, bounds: Bounds) -> tuple[list[int], LimitReason]:
    """Chooses texts in order of arrival until a limit is reached, whatever the padding costs."""
    width = 0
    for count, length in enumerate(lengths):
        width = max(width, length)
        if count == bounds.batch_items:
            return list(range(count)), "items"
        if count and (count + 1) * width > bounds.batch_tokens:
            return list(range(count)), "tokens"
    return list(range(len(lengths))), "all"


def make_bentoml(predictor: Predictor, bounds: Bounds, metrics: Metrics, manifest: Manifest) -> BentoMLBatcher:
    """Makes the queue of a service that batches as BentoML does."""
    return BentoMLBatcher(predictor.run, bounds, metrics, manifest.serve.timeout_s)


def make_fifo(predictor: Predictor, bounds: Bounds, metrics: Metrics, manifest: Manifest) -> Batcher:
    """Makes the queue of a service that fills batches in order of arrival."""
    streams, shape = predictor.engine.execution.streams, predictor.engine.shape
    return Batcher(predictor.run, bounds, metrics, manifest.cost, streams, in_order, shape)
