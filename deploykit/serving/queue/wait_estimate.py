"""How long texts wait: an estimate that follows what batches take, and how far waits were from it of late.

What waits is counted in the seconds that it would take one by one. Batches take less, and texts that come later and
fill them up pass others; both are learned while the service runs.
"""

import numpy as np

REMEMBERED = 0.9  # of the seconds of earlier batches, measured and estimated, after each one
GAIN = 1 / 256  # of one wait, in the running means
DEVIATIONS = 2.0  # mean ones above the mean: waits under load are bounded and have no long tail, nearly all lie below
MOST = 3.0  # times the estimate


class Waits:
    """What one queue has learned; waits are followed by mean and mean deviation (Jacobson, 1988).

    Args:
        streams: how many batches run at the same time.
    """

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._taken = np.full(2, 0.1)  # seconds of late: measured, and estimated for the same texts one by one
        self._mean, self._deviation = 1.0, 0.0  # of waits, as shares of their estimates

    def takes(self, alone_s: float) -> float:
        """Estimates how long texts take together, in seconds.

        Args:
            alone_s: that they would take one by one.
        """
        measured, alone = self._taken
        return float(alone_s * measured / max(alone, 1e-9)) / self._streams

    @property
    def margin(self) -> float:
        """Times an estimated wait that nearly nobody waits for longer."""
        return min(max(self._mean + DEVIATIONS * self._deviation, 1.0), MOST)

    def ran(self, seconds: float, alone_s: float) -> None:
        """Learns from a batch that took so many seconds, and would have taken `alone_s` text by text."""
        self._taken = REMEMBERED * self._taken + (seconds, alone_s)

    def waited(self, seconds: float, estimate_s: float) -> None:
        """Learns from a text that waited so many seconds, where `estimate_s` were estimated."""
        share = min(seconds / max(estimate_s, 1e-9), MOST)  # one stall says little of the next burst
        self._deviation += GAIN * (abs(share - self._mean) - self._deviation)
        self._mean += GAIN * (share - self._mean)
