"""How long texts wait: an estimate that follows what batches take, and how often the bound of the wait was exceeded.

What waits is counted in the seconds that it would take one by one. Batches take less, and texts that come later and
fill them up pass others; both are learned while the service runs.
"""

from collections.abc import Iterable
from math import inf

import numpy as np

REMEMBERED = 0.9  # of the seconds of earlier batches, measured and estimated, after each one
LATE_SHARE = 0.01  # of the texts let in near the bound of their wait: those that may exceed it
STEP, MOST = 0.005, 2.0  # of the correction: for a batch that is late; and at most
FADES = STEP / 10  # of the correction, whenever nobody waits any more


class Waits:
    """What one queue has learned.

    Args:
        streams: how many batches run at the same time.
    """

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._taken = np.full(2, 0.1)  # seconds of late: measured, and estimated for the same texts one by one
        self.correction = 1.0  # times an estimated wait that it takes to hold for nearly all

    def takes(self, alone_s: float) -> float:
        """Estimates how long texts take together, in seconds.

        Args:
            alone_s: that they would take one by one.
        """
        measured, alone = self._taken
        return float(alone_s * measured / max(alone, 1e-9)) / self._streams

    def expected(self, alone_s: float) -> float:
        """Estimates how long nearly everybody waits at most for texts that would take so many seconds one by one."""
        return self.takes(alone_s) * self.correction

    def ran(self, seconds: float, alone_s: float) -> None:
        """Learns from a batch that took so many seconds, and would have taken `alone_s` text by text."""
        self._taken = REMEMBERED * self._taken + (seconds, alone_s)

    def waited(self, waits: Iterable[tuple[float, float]]) -> None:
        """Learns from texts that were let in near the bound of their wait, by the gradient of the quantile loss.

        Args:
            waits: seconds, and their bounds (`inf` for who was not near it), of texts of one batch; those that are late
                together count as one.
        """
        late = [seconds > bound for seconds, bound in waits if bound < inf]
        up = any(late) * (1 - LATE_SHARE) - (len(late) - sum(late)) * LATE_SHARE
        self.correction = min(max(self.correction + STEP * up, 1.0), MOST)

    def rest(self) -> None:
        """Forgets a little of the correction: nobody waits."""
        self.correction = max(self.correction - FADES, 1.0)
