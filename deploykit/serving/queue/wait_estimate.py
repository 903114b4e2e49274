"""Estimates how long texts will wait, from recent batches and from the errors of recent estimates.

The work in the queue is measured in the seconds that its texts would take one by one. Batches take less time than that,
and later texts may overtake earlier ones by joining a batch; both effects are learned while the service runs.
"""

BATCH_DECAY = 0.9  # each new batch multiplies the weight of earlier ones by this: about the last ten batches count
WAIT_WEIGHT = 1 / 256  # of a new wait in the running means: the last few hundred waits count
MARGIN_DEVIATIONS = 2.0  # the margin is this many mean deviations above the mean: 99 % of waits are then shorter
MAX_MARGIN = 3.0  # also the largest ratio that is learned: one stall says little about the next waits


class WaitEstimator:
    """Estimates the waits of one queue.

    It learns the mean and the mean deviation of the ratio of a wait to its estimate, as Jacobson (1988) does for TCP.

    Args:
        streams: number of batches that run at the same time.
    """

    def __init__(self, streams: int) -> None:
        self._streams = streams
        # seconds of recent batches, measured; and those predicted for their texts one by one
        self._batches_s = self._one_by_one_s = 0.1
        self._mean_ratio, self._mean_deviation = 1.0, 0.0  # of waits to their estimates

    def estimate_s(self, one_by_one_s: float) -> float:
        """Estimates the seconds of texts in batches on all streams, if they take `one_by_one_s` one by one."""
        time_ratio = self._batches_s / max(self._one_by_one_s, 1e-9)
        return one_by_one_s * time_ratio / self._streams

    @property
    def margin(self) -> float:
        """Factor from 1 to `MAX_MARGIN`: nearly all waits are shorter than their estimate times this."""
        return min(max(self._mean_ratio + MARGIN_DEVIATIONS * self._mean_deviation, 1.0), MAX_MARGIN)

    def learn_batch(self, batch_s: float, one_by_one_s: float) -> None:
        """Learns from a batch that took `batch_s`; its texts were predicted to take `one_by_one_s` one by one."""
        self._batches_s = BATCH_DECAY * self._batches_s + batch_s
        self._one_by_one_s = BATCH_DECAY * self._one_by_one_s + one_by_one_s

    def learn_wait(self, wait_s: float, estimate_s: float) -> None:
        """Learns from a text that waited `wait_s`, for which `estimate_s` was estimated."""
        ratio = min(wait_s / max(estimate_s, 1e-9), MAX_MARGIN)
        self._mean_deviation += WAIT_WEIGHT * (abs(ratio - self._mean_ratio) - self._mean_deviation)
        self._mean_ratio += WAIT_WEIGHT * (ratio - self._mean_ratio)
