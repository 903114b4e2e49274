"""The latency model of a padded batch: the selection fits it to measurements, the batcher follows it while serving."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deploykit.methods import Frozen

UNITS = np.array([1.0, 2.0**-7, 2.0**-14])  # of the three terms: at 128 tokens, they are alike in size
INITIAL_PRIOR_BATCHES, FINAL_PRIOR_BATCHES = 30.0, 1.0  # weight of the prior cost: it fades, but never to nothing
FORGETTING_FACTOR = 0.998  # exponential weight of the past per batch: a half-life of about 350 batches
REFIT_BATCHES = 32  # batches between two fits, which take longer than to note a batch
PRIOR_POINTS = tuple((items, width) for width in (8, 32, 128, 512) for items in (1, 4, 16))


class Cost(Frozen):
    """Predicts the seconds of a batch: `fixed + items * (per_token * width + per_square * width ** 2)`.

    `width` is the length in tokens to which all items are padded; its square accounts for attention. Batching decisions
    depend on ratios only. The defaults are from a six-layer int8 encoder on one core, where one text of 26 tokens took
    5.8 ms and a batch of eight took 29 ms.
    """

    fixed: float = Field(default=2.5e-3, ge=0)
    per_token: float = Field(default=1.3e-4, ge=0)
    per_square: float = Field(default=0.0, ge=0)

    def seconds(self, items: int, width: float) -> float:
        """Predicts the seconds of a batch of `items` padded to `width` tokens."""
        return self.fixed + items * (self.per_token * width + self.per_square * width**2)

    def pays(self, items: int, width: int, tokens: int, waiting: int) -> bool:
        """Says whether adding a text of `tokens` to a batch of `items` padded to `width` lowers the total waiting time.

        The `items` of the batch each wait longer by what the batch takes longer. The `waiting` texts outside the batch,
        including this one, each wait shorter by what the text would have taken alone, minus that.
        """
        longer = self.seconds(items + 1, max(width, tokens)) - self.seconds(items, width)
        return waiting * (self.seconds(1, tokens) - longer) >= items * longer


class LearnedCost:
    """A cost that is refitted to the batches of a running service.

    Recursive least squares on relative errors with exponential forgetting (Ljung and Soderstrom, 1983), with all terms
    non-negative. It starts from a prior cost and keeps a small weight on it, so that lengths that the service rarely
    sees keep a sensible cost.

    Args:
        prior: the cost that the selection fitted.
    """

    def __init__(self, prior: Cost) -> None:
        self.current = prior
        rows = [_row(*point) / prior.seconds(*point) for point in PRIOR_POINTS if prior.seconds(*point) > 0]
        self._prior_square = sum((np.outer(row, row) for row in rows), np.zeros((3, 3))) / len(PRIOR_POINTS)
        self._prior_right = sum(rows, np.zeros(3)) / len(PRIOR_POINTS)
        self._square, self._right, self._count = np.zeros((3, 3)), np.zeros(3), 0
        self._batches: list[tuple[int, int, float]] = []  # since the last fit

    def learn(self, items: int, width: int, seconds: float) -> None:
        """Takes in a batch of `items` padded to `width` tokens that took `seconds`."""
        self._batches.append((items, width, max(seconds, 1e-9)))
        if len(self._batches) == REFIT_BATCHES:
            self._count += REFIT_BATCHES
            rows = np.array([_row(items, width) / seconds for items, width, seconds in self._batches])
            weights = FORGETTING_FACTOR ** np.arange(REFIT_BATCHES)[::-1]
            self._square = FORGETTING_FACTOR**REFIT_BATCHES * self._square + (weights * rows.T) @ rows
            self._right = FORGETTING_FACTOR**REFIT_BATCHES * self._right + weights @ rows
            self._batches.clear()
            weight = max(INITIAL_PRIOR_BATCHES * FORGETTING_FACTOR**self._count, FINAL_PRIOR_BATCHES)
            terms = _non_negative(weight * self._prior_square + self._square, weight * self._prior_right + self._right)
            self.current = Cost(**dict(zip(Cost.model_fields, terms * UNITS, strict=True)))


def _row(items: int, width: int) -> npt.NDArray[np.float64]:
    """Returns the factors of the three terms of the cost, in their units."""
    return UNITS * [1.0, items * width, items * width**2]


def _non_negative(square: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Minimizes `x A x / 2 - b x` over non-negative x, by trying every subset of the terms and zero for the others."""
    best, lowest = np.zeros(3), 0.0
    for count in (1, 2, 3):
        for free in map(list, combinations(range(3), count)):
            solution = np.zeros(3)
            solution[free] = np.linalg.lstsq(square[np.ix_(free, free)], right[free], rcond=None)[0]
            value = float(solution @ square @ solution / 2 - right @ solution)
            if (solution >= 0).all() and value < lowest:
                best, lowest = solution, value
    return best
