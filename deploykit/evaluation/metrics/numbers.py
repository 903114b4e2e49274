"""Metrics for tasks that predict a number: decisions and gold are arrays of shape `(1,)`."""

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import root_mean_squared_error

from deploykit.evaluation.metrics import Outcomes, Statistic, Values, statistic_of_rows, statistic_of_sums

MIN_SPREAD = 1e-12  # a product of squared deviations that is smaller counts as 0: all numbers are equal


class Pearson:
    """Pearson's correlation."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with scipy; 0 if all predictions or all numbers are equal."""
        gold, predicted = _flat(outcomes)
        return float(pearsonr(gold, predicted)[0]) if np.ptp(gold) and np.ptp(predicted) else 0.0

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric from sums over drawn rows: of the numbers, their squares and their products."""
        gold, predicted = _flat(outcomes)
        x, y = gold - gold.mean(), predicted - predicted.mean()  # smaller numbers lose fewer digits
        counts = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)

        def correlation(sums: Values) -> Values:
            count, sum_x, sum_y, squares_x, squares_y, products = sums.T
            covariance = products - sum_x * sum_y / count
            spread = (squares_x - sum_x**2 / count) * (squares_y - sum_y**2 / count)
            return np.where(spread > MIN_SPREAD, covariance / np.sqrt(np.maximum(spread, MIN_SPREAD)), 0.0)

        return statistic_of_sums(counts, correlation)


class Spearman:
    """Spearman's rank correlation."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with scipy; 0 if all predictions or all numbers are equal."""
        gold, predicted = _flat(outcomes)
        return float(spearmanr(gold, predicted)[0]) if np.ptp(gold) and np.ptp(predicted) else 0.0

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric from the ranks of drawn rows."""
        gold, predicted = _flat(outcomes)

        def correlation(rows: npt.NDArray[np.intp]) -> float:
            ranks = [rankdata(numbers[rows]) for numbers in (gold, predicted)]
            return float(np.corrcoef(ranks)[0, 1]) if min(one.std() for one in ranks) > 0 else 0.0

        return statistic_of_rows(correlation)


class RootMeanSquaredError:
    """The root of the mean squared error, in the units of the data."""

    HIGHER_IS_BETTER = False

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with scikit-learn."""
        return float(root_mean_squared_error(*_flat(outcomes)))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric from the squared errors of drawn rows."""
        gold, predicted = _flat(outcomes)
        counts = np.stack([np.ones(len(gold)), (gold - predicted) ** 2], axis=1)
        return statistic_of_sums(counts, lambda sums: np.sqrt(sums[:, 1] / np.maximum(sums[:, 0], 1)))


def _flat(outcomes: Outcomes) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the true and the predicted numbers, `(rows,)` each."""
    return np.concatenate(outcomes.gold), np.concatenate(outcomes.decisions)
