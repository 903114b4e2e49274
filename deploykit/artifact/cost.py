"""What a padded batch costs on the machine where it was measured: the selection fits it, the batcher asks it."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deploykit.methods import Frozen

TERMS = {"fixed": 1.0, "per_token": 2.0**-7, "per_square": 2.0**-14}  # in units that make them alike in size
PRIOR, LEAST = 30.0, 1.0  # batches that what was measured before counts for, at first and at last
MEMORY = 0.998  # of what each batch says after the next one: some hundreds are remembered
EVERY = 32  # batches between two solutions
POINTS = tuple((items, width) for width in (8, 32, 128, 512) for items in (1, 4, 16))


class Cost(Frozen):
    """Seconds of a batch: `fixed + items * (per_token * width + per_square * width ** 2)`.

    `width` is the length in tokens that all items are padded to; its square is attention's share. Only ratios
    decide what is batched. The defaults are of a six-layer int8 encoder on one core, where a text alone took
    5.8 ms at 26 tokens and eight of them 29 ms.
    """

    fixed: float = Field(default=2.5e-3, ge=0)
    per_token: float = Field(default=1.3e-4, ge=0)
    per_square: float = Field(default=0.0, ge=0)

    def seconds(self, items: int, width: float) -> float:
        """Returns what a batch of `items` padded to `width` takes."""
        return self.fixed + items * (self.per_token * width + self.per_square * width**2)

    def pays(self, items: int, width: int, tokens: int, waiting: int) -> bool:
        """Says whether a text of `tokens` joins a batch of `items` padded to `width`, for less waiting in all.

        The items of the batch wait for what it takes longer with the text; the `waiting` that are not in it, the
        text among them, need not wait for what that saves.
        """
        longer = self.seconds(items + 1, max(width, tokens)) - self.seconds(items, width)
        return waiting * (self.seconds(1, tokens) - longer) >= items * longer


class Learned:
    """A cost that follows what batches take where they are served.

    Least squares of relative errors with exponential forgetting (Ljung and Soderstrom, 1983), none of the terms
    below zero; it begins from what was measured before, and keeps a little of that for lengths that are not met.

    Args:
        start: what was measured before.
    """

    def __init__(self, start: Cost) -> None:
        self.now = start
        prior = [_row(*point) / start.seconds(*point) for point in POINTS if start.seconds(*point) > 0]
        self._prior = sum((np.outer(row, row) for row in prior), np.zeros((3, 3))) / len(POINTS)
        self._right = sum(prior, np.zeros(3)) / len(POINTS)
        self._seen, self._sum, self._count = np.zeros((3, 3)), np.zeros(3), 0

    def learn(self, items: int, width: int, seconds: float) -> None:
        """Takes in a batch of `items` padded to `width` tokens that took so many seconds."""
        row = _row(items, width) / max(seconds, 1e-9)
        self._seen = MEMORY * self._seen + np.outer(row, row)
        self._sum = MEMORY * self._sum + row
        self._count += 1
        if self._count % EVERY == 0:
            weight = max(PRIOR * MEMORY**self._count, LEAST)
            solved = _non_negative(weight * self._prior + self._seen, weight * self._right + self._sum)
            self.now = Cost(**{name: value * unit for (name, unit), value in zip(TERMS.items(), solved, strict=True)})


def _row(items: int, width: int) -> npt.NDArray[np.float64]:
    """Returns what each term of the cost is multiplied by."""
    return np.array([1.0, items * width, items * width**2]) * list(TERMS.values())


def _non_negative(square: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Minimizes `x A x / 2 - b x` over x that are not below zero: of the sets of free terms the best that fits."""
    best, lowest = np.zeros(3), 0.0
    for count in (1, 2, 3):
        for free in map(list, combinations(range(3), count)):
            found = np.zeros(3)
            found[free] = np.linalg.lstsq(square[np.ix_(free, free)], right[free], rcond=None)[0]
            value = float(found @ square @ found / 2 - right @ found)
            if (found >= 0).all() and value < lowest:
                best, lowest = found, value
    return best
