"""Estimates how long texts will wait, from recent batches and from the error of recent estimates.

The queue is measured in the seconds that its texts would take one by one. Batches take less time than that, and later
texts may overtake earlier ones by joining a batch; both effects are learned while the service runs.
"""

BATCH_MEMORY = 0.9  # weight of the past per batch: about the last ten batches count
WAIT_WEIGHT = 1 / 256  # weight of one wait in the running means: some hundred waits count
MARGIN_DEVIATIONS = 2.0  # mean deviations above the mean: 99 % of the waits of a bounded queue are shorter
MAX_MARGIN = 3.0  # bounds the ratio of a wait to its estimate: one stall says little about the next waits


class WaitEstimator:
    """Estimates the waits of one queue; learns the mean and mean deviation of waits (Jacobson, 1988).

    Args:
        streams: number of batches that run at the same time.
    """

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._batch_s = self._alone_s = 0.1  # of recent batches: measured, and predicted for their texts one by one
        self._mean, self._deviation = 1.0, 0.0  # of the ratios of waits to their estimates

    def estimate_s(self, alone_s: float) -> float:
        """Estimates how many seconds texts take in batches, on all streams, if they take `alone_s` one by one."""
        return alone_s * self._batch_s / max(self._alone_s, 1e-9) / self._streams

    @property
    def margin(self) -> float:
        """Factor by which an estimate is multiplied so that nearly all waits are shorter."""
        return min(max(self._mean + MARGIN_DEVIATIONS * self._deviation, 1.0), MAX_MARGIN)

    def learn_batch(self, seconds: float, alone_s: float) -> None:
        """Learns from a batch that took `seconds`, and whose texts one by one were predicted to take `alone_s`."""
        self._batch_s = BATCH_MEMORY * self._batch_s + seconds
        self._alone_s = BATCH_MEMORY * self._alone_s + alone_s

    def learn_wait(self, seconds: float, estimate_s: float) -> None:
        """Learns from a text that waited `seconds`, while `estimate_s` was estimated."""
        ratio = min(seconds / max(estimate_s, 1e-9), MAX_MARGIN)
        self._deviation += WAIT_WEIGHT * (abs(ratio - self._mean) - self._deviation)
        self._mean += WAIT_WEIGHT * (ratio - self._mean)
