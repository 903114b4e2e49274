"""The latency model of a padded batch.

The selection fits it to measurements. The batcher of a service decides by it, and refits it to the batches that it has
run.
"""

from itertools import combinations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deploykit.methods import Frozen

# The fit solves for the terms divided by these scales. At a width of 128 tokens the scaled factors of the terms are
# equal, so that the fit is well conditioned.
TERM_SCALES = np.array([1.0, 2.0**-7, 2.0**-14])
# The prior cost counts as many measured batches as this. Its weight fades, but never to nothing.
INITIAL_PRIOR_BATCHES, FINAL_PRIOR_BATCHES = 30.0, 1.0
FORGETTING_FACTOR = 0.998  # of the weight of older batches, with each new batch: a half-life of about 350 batches
REFIT_BATCHES = 32  # between two fits, because a fit takes longer than to note a batch
# Batches, as (items, width), whose times by the prior cost are fitted with the measured ones. They span the range of a
# usual service.
PRIOR_POINTS = tuple((items, width) for width in (8, 32, 128, 512) for items in (1, 4, 16))


class Cost(Frozen):
    """Predicts the seconds of a batch: `fixed + items * (per_token * width + per_square * width ** 2)`.

    `items` is the number of texts, and `width` the length in tokens to which all of them are padded. The three fields
    are in seconds. `per_square` accounts for attention. Batching decisions depend only on the ratios of the fields. The
    defaults are from a six-layer int8 encoder on one core, where one text of 26 tokens took 5.8 ms and a batch of eight
    took 29 ms.
    """

    fixed: float = Field(default=2.5e-3, ge=0)
    per_token: float = Field(default=1.3e-4, ge=0)
    per_square: float = Field(default=0.0, ge=0)

    def seconds(self, items: int, width: float) -> float:
        """Predicts the seconds of a batch of `items` padded to `width` tokens."""
        return self.fixed + items * (self.per_token * width + self.per_square * width**2)

    def should_add_text(self, items: int, width: int, tokens: int, waiting: int) -> bool:
        """Tells whether adding one more text to a batch lowers the total waiting time of all texts.

        Each item of the batch waits longer by the seconds that the text adds to the batch. Each text outside the batch
        waits shorter by the seconds that the text would have taken alone, minus those that it adds.

        Args:
            items: number of texts in the batch.
            width: length in tokens to which the batch is padded.
            tokens: length of the text that may be added.
            waiting: number of texts outside the batch, this one included.
        """
        added_s = self.seconds(items + 1, max(width, tokens)) - self.seconds(items, width)
        saved_s = self.seconds(1, tokens) - added_s
        return waiting * saved_s >= items * added_s


class LearnedCost:
    """A cost that is refitted to the batches of a running service.

    Recursive least squares on relative errors with exponential forgetting (Ljung and Soderstrom, 1983), with all terms
    non-negative. The fit starts from a prior cost and keeps a small weight on it, so that lengths that the service
    rarely sees keep a sensible cost.

    The normal equations are `matrix @ terms = vector`, where each batch adds the outer product of its row to the matrix
    and the row to the vector. A row is the scaled factors of the terms, divided by the seconds of the batch.

    Args:
        prior: the cost that the selection fitted.
    """

    def __init__(self, prior: Cost) -> None:
        self.current = prior
        rows = [_row(*point) / prior.seconds(*point) for point in PRIOR_POINTS if prior.seconds(*point) > 0]
        self._prior_matrix = sum((np.outer(row, row) for row in rows), np.zeros((3, 3))) / len(PRIOR_POINTS)
        self._prior_vector = sum(rows, np.zeros(3)) / len(PRIOR_POINTS)
        self._matrix, self._vector, self._fitted_batches = np.zeros((3, 3)), np.zeros(3), 0
        self._new_batches: list[tuple[int, int, float]] = []  # items, width and seconds, since the last fit

    def learn(self, items: int, width: int, seconds: float) -> None:
        """Notes the seconds that a batch of `items` padded to `width` tokens took; refits after `REFIT_BATCHES`."""
        self._new_batches.append((items, width, max(seconds, 1e-9)))
        if len(self._new_batches) == REFIT_BATCHES:
            self._refit()

    def _refit(self) -> None:
        self._fitted_batches += REFIT_BATCHES
        rows = np.array([_row(items, width) / seconds for items, width, seconds in self._new_batches])
        weights = FORGETTING_FACTOR ** np.arange(REFIT_BATCHES)[::-1]  # the newest batch, which is last, has weight 1
        self._matrix = FORGETTING_FACTOR**REFIT_BATCHES * self._matrix + (weights * rows.T) @ rows
        self._vector = FORGETTING_FACTOR**REFIT_BATCHES * self._vector + weights @ rows
        self._new_batches.clear()
        prior_weight = max(INITIAL_PRIOR_BATCHES * FORGETTING_FACTOR**self._fitted_batches, FINAL_PRIOR_BATCHES)
        matrix = prior_weight * self._prior_matrix + self._matrix
        vector = prior_weight * self._prior_vector + self._vector
        terms = _solve_non_negative(matrix, vector) * TERM_SCALES
        self.current = Cost(**dict(zip(Cost.model_fields, terms, strict=True)))


def _row(items: int, width: int) -> npt.NDArray[np.float64]:
    """Returns the scaled factors of the three terms of the cost, `(3,)`."""
    return TERM_SCALES * [1.0, items * width, items * width**2]


def _solve_non_negative(matrix: npt.NDArray[np.float64], vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Minimizes `x @ matrix @ x / 2 - vector @ x` over non-negative x, `(3,)`.

    It tries every subset of the terms, with zero for the others, and returns the best solution without negative terms.
    """
    best_solution, lowest_value = np.zeros(3), 0.0
    for count in (1, 2, 3):
        for nonzero in map(list, combinations(range(3), count)):
            solution = np.zeros(3)
            solution[nonzero] = np.linalg.lstsq(matrix[np.ix_(nonzero, nonzero)], vector[nonzero], rcond=None)[0]
            value = float(solution @ matrix @ solution / 2 - vector @ solution)
            if (solution >= 0).all() and value < lowest_value:
                best_solution, lowest_value = solution, value
    return best_solution
