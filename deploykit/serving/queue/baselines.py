"""BentoML's adaptive batching behind the batcher's interface, to compare with: what `batchable=True` would do.

It learns how long batches take from the number of their texts, knows nothing of tokens or padding, computes what
nobody waits for any more, lets nobody go first, and fails a whole batch for one text. One difference is in its
favour: texts come tokenized, and every kind of request can be batched.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from time import perf_counter
from typing import NamedTuple

from bentoml.exceptions import ServiceUnavailable

from deploykit.serving import patches
from deploykit.serving.problems import CLIENT_GONE, Problem, busy
from deploykit.serving.queue.batch_rules import Bounds
from deploykit.serving.queue.batcher import GONE, Compute, Timing
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Float32
from deploykit.tokenizer import Encoding

with patches.expected("bentoml", f"{patches.BATCHING}.CorkDispatcher"):
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

logger = logging.getLogger("deploykit.serving")


class _Text(NamedTuple):
    text: str
    encoding: Encoding
    timing: Timing
    since: float


class Cork:
    """A queue and a thread behind it.

    Args:
        compute: runs one batch; called in the thread only.
        bounds: of which the most texts of a batch are kept.
        metrics: where batches are counted.
        timeout_s: a text that would wait longer is refused, in seconds.
    """

    def __init__(self, compute: Compute, bounds: Bounds, metrics: Metrics, timeout_s: float) -> None:
        self._compute, self._metrics, self._started = compute, metrics, 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._dispatcher: CorkDispatcher[_Text, Float32] = CorkDispatcher(
            max_latency_in_ms=round(timeout_s * 1000),
            max_batch_size=bounds.batch_items,
            fallback=_overloaded,
            get_batch_size=lambda _: 1,
        )
        self._call = self._dispatcher(self._run)

    @property
    def began(self) -> float | None:
        """When the batch in the engine began; None when it is idle."""
        return self._started or None

    @property
    def busy_s(self) -> float:
        """Seconds that the batch in the engine has been there; 0 when it is idle."""
        return perf_counter() - self._started if self._started else 0.0

    def waiting(self) -> tuple[int, int, float]:
        """Returns zeros: its queue tells nothing of what waits."""
        return 0, 0, 0.0

    def check(self, client: str, lengths: Sequence[int] = (), timeout_s: float = inf) -> float:
        """Refuses nobody: its queue has no end, and how long it takes is not known."""
        return 0.0

    async def submit(
        self,
        texts: Sequence[str],
        encodings: Sequence[Encoding],
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> tuple[list[Float32], Timing]:
        """Waits for the scores of a request; see `Batcher.submit`. All clients are one here."""
        timing = Timing()
        calls = [
            asyncio.ensure_future(self._call(_Text(*pair, timing, perf_counter())))
            for pair in zip(texts, encodings, strict=True)
        ]
        found = asyncio.gather(*calls)
        if gone is not None:
            gone.add_done_callback(lambda _: found.cancel())
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return [scores for scores in await found if scores is not None], timing
        except (TimeoutError, ServiceUnavailable, asyncio.CancelledError) as error:  # it takes being cancelled for busy
            if gone is not None and gone.done():
                raise Problem(CLIENT_GONE, "client_gone", GONE) from None
            if deadline.expired():
                raise Problem(504, "deadline", "no answer in the time that this service allows: it is busy") from None
            if isinstance(error, ServiceUnavailable):
                raise busy(1) from None
            raise
        except Exception as error:
            logger.error("the engine failed on a batch", exc_info=error)
            raise Problem(500, "failed", "the model failed on one of these texts, or on one beside them") from None

    def close(self) -> None:
        """Ends the thread once it is done."""
        self._dispatcher.shutdown()
        self._pool.shutdown(wait=False)

    async def _run(self, batch: Sequence[_Text]) -> Sequence[Float32]:
        self._started = now = perf_counter()
        for item in batch:
            item.timing.queue_s = max(item.timing.queue_s, now - item.since)
            self._metrics.queue_seconds.observe(now - item.since)
        texts, encodings = [item.text for item in batch], [item.encoding for item in batch]
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, self._compute, texts, encodings)
        finally:
            self._started = 0.0
        taken = perf_counter() - now
        for item in batch:
            item.timing.ran(now, taken)
        lengths = [len(encoding) for encoding in encodings]
        self._metrics.batched(lengths, max(lengths), taken)
        return found


def _overloaded() -> Float32:
    raise ServiceUnavailable("too many texts are waiting")
