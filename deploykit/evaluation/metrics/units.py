"""Metrics for tasks that label units: decisions and gold are arrays of label indices, `(units,)`.

A unit is what gets one label: a whole text, or a word of it. Some metrics here are for tasks with several labels per
text: decisions and gold are then the indices of all labels of a text.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, matthews_corrcoef, roc_auc_score

from deploykit.evaluation.metrics import Outcomes, Statistic, Values, statistic_of_sums
from deploykit.tasks import Observations

BINS = 15  # of equal width, for the calibration error; as many as in Guo et al. (2017)


class Accuracy:
    """The share of units whose label is right."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with scikit-learn."""
        return float(accuracy_score(*_flat(outcomes)))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric from the right units and all units of drawn rows."""
        pairs = zip(outcomes.gold, outcomes.decisions, strict=True)
        counts = np.array([((gold == decision).sum(), len(gold)) for gold, decision in pairs], dtype=float)
        return statistic_of_sums(counts, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))


class Matthews:
    """Matthews' correlation coefficient of all labels (Gorodkin, 2004), from -1 to 1."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with scikit-learn."""
        return float(matthews_corrcoef(*_flat(outcomes)))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric from drawn units: how many are right, and how many true and predicted of each label."""
        label_count, counts = len(outcomes.spec.labels), _label_counts(outcomes)

        def coefficient(sums: Values) -> Values:
            right, true, predicted = sums[:, 0], sums[:, 1 : 1 + label_count], sums[:, 1 + label_count :]
            total = true.sum(axis=1)
            covariance = right * total - (true * predicted).sum(axis=1)
            spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
            return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1)), 0.0)

        return statistic_of_sums(counts, coefficient)


def _label_counts(outcomes: Outcomes) -> Any:
    """Counts the units of each row.

    Returns:
        A sparse array, `(rows, 1 + 2 * labels)`: the number of right units, then of true units of each label, then of
        predicted units of each label.
    """
    label_count = len(outcomes.spec.labels)
    row_of_unit = np.repeat(np.arange(len(outcomes)), [len(gold) for gold in outcomes.gold])
    gold, predicted = _flat(outcomes)
    right = gold == predicted
    rows = np.concatenate([row_of_unit[right], row_of_unit, row_of_unit])
    columns = np.concatenate([np.zeros(right.sum(), dtype=np.int64), 1 + gold, 1 + label_count + predicted])
    return coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(outcomes), 1 + 2 * label_count)).tocsr()


class RocAuc:
    """The area under the ROC curve; for more than two labels, the mean over labels of each one against the rest.

    A label that is true of no unit, or of all, is left out. If that leaves no label, the area is NaN.
    """

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with scikit-learn."""
        areas = [roc_auc_score(true, scores) for true, scores in _against_rest(outcomes) if 0 < true.mean() < 1]
        return float(np.mean(areas)) if areas else float("nan")

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric for drawn rows, from the order of the probabilities.

        A sample in which the area is undefined for all labels gets the area of all rows.
        """
        row_of_unit = np.repeat(np.arange(len(outcomes)), [len(gold) for gold in outcomes.gold])
        area_of_all = self.value(outcomes)
        labels = [(true, np.unique(scores, return_inverse=True)[1]) for true, scores in _against_rest(outcomes)]

        def mean_area(weights: npt.NDArray[Any]) -> Values:
            unit_weights = weights[:, row_of_unit]
            areas = np.stack([_areas(true, ranks, unit_weights) for true, ranks in labels])
            defined = ~np.isnan(areas)
            mean: Values = np.where(defined, areas, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
            return np.where(defined.any(axis=0), mean, area_of_all)

        return mean_area


def _against_rest(outcomes: Outcomes) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]]:
    """Returns, for each label, of which units it is true, and its probabilities, `(units,)` each.

    If there are two labels, only the second is returned: the first would give the same area.
    """
    gold, probabilities = np.concatenate(outcomes.gold), np.concatenate(outcomes.probabilities)
    labels = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [(gold == label, probabilities[:, label]) for label in labels]


def _areas(true: npt.NDArray[np.bool_], ranks: npt.NDArray[np.intp], unit_weights: npt.NDArray[Any]) -> Values:
    """Returns the area under the ROC curve of one label in each sample, `(samples,)`.

    It is the share of pairs of a unit of the label and another unit in which the first has the higher probability. It
    is NaN for a sample without such pairs.

    Args:
        true: whether each unit has the label, `(units,)`.
        ranks: of its probability in ascending order, from 0; equal probabilities have equal ranks, `(units,)`.
        unit_weights: how often each unit was drawn, `(samples, units)`.
    """
    rank_count = int(ranks.max(initial=0)) + 1
    positive, negative = (  # units of each rank, (samples, ranks)
        np.stack([np.bincount(ranks[units], sample[units], rank_count) for sample in unit_weights])
        for units in (true, ~true)
    )
    lower_negative = np.cumsum(negative, axis=1) - negative / 2  # of equal probabilities, half of the pairs count
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: Values = (positive * lower_negative).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
    return areas


class AveragePrecision:
    """The average precision of each label that is true anywhere, averaged over labels; for several labels per text."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with scikit-learn."""
        true, scores = _indicators(outcomes)
        values = [average_precision_score(*pair) for pair in zip(true.T, scores.T, strict=True) if pair[0].any()]
        return float(np.mean(values)) if values else 0.0

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric for drawn rows, from the order of the probabilities."""
        true, scores = _indicators(outcomes)

        def mean_precision(weights: npt.NDArray[Any]) -> Values:
            labels = [_average_precisions(*pair, weights) for pair in zip(true.T, scores.T, strict=True)]
            precisions, occurs = (np.stack(arrays) for arrays in zip(*labels, strict=True))
            averaged: Values = np.where(occurs, precisions, 0).sum(axis=0) / np.maximum(occurs.sum(axis=0), 1)
            return averaged

        return mean_precision


def _indicators(outcomes: Outcomes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Returns whether each label is true of each row, and its probability, `(rows, labels)` each."""
    scores = np.concatenate(outcomes.probabilities)
    true = np.zeros(scores.shape, dtype=bool)
    for row, gold in enumerate(outcomes.gold):
        true[row, gold] = True
    return true, scores


def _average_precisions(
    true: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], weights: npt.NDArray[Any]
) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Returns the average precision of one label in each sample, and whether any row has it there, `(samples,)` each.

    Args:
        true: whether each row has the label, `(rows,)`.
        scores: its probabilities, `(rows,)`.
        weights: how often each row was drawn, `(samples, rows)`.
    """
    ranks = np.unique(-scores, return_inverse=True)[1]  # the highest probability has rank 0
    rank_count = int(ranks.max(initial=0)) + 1
    right, predicted = (  # rows down to each rank, (samples, ranks)
        np.cumsum([np.bincount(ranks[rows], sample[rows], rank_count) for sample in weights], axis=1)
        for rows in (true, np.ones(len(true), dtype=bool))
    )
    right_at_rank = np.diff(right, axis=1, prepend=0)
    total = right[:, -1]
    return (right_at_rank * right / np.maximum(predicted, 1)).sum(axis=1) / np.maximum(total, 1), total > 0


def confusion(outcomes: Outcomes) -> list[list[int]]:
    """Returns the confusion matrix: how many units of each true label (rows) were predicted as each label (columns)."""
    matrix: list[list[int]] = confusion_matrix(*_flat(outcomes), labels=range(len(outcomes.spec.labels))).tolist()
    return matrix


def calibration_error(outcomes: Outcomes) -> Statistic:
    """Returns the statistic of the expected calibration error of the most probable label (Guo et al., 2017, section 2).

    The error is a mean over bins, weighted by their units, of the distance between accuracy and mean probability.
    """
    observed = outcomes.task.observe(outcomes.predictions, outcomes.spec)
    return statistic_of_sums(count_calibration(outcomes, observed), _error_of_sums)


def count_calibration(outcomes: Outcomes, observed: Observations) -> Values:
    """Returns the counts of each row from which the calibration error follows, `(rows, BINS + 1)`.

    Each of the first `BINS` columns belongs to a bin of probabilities. It holds the right units minus the sum of the
    probabilities, over the row's units whose highest probability lies in the bin. The last column counts the units.
    """
    right = observed.labels == np.concatenate(outcomes.gold)
    confidences = np.nan_to_num(observed.confidences, nan=1.0)  # NaN is wrong with full confidence
    counts = np.zeros((len(outcomes), BINS + 1))
    counts[:, BINS] = observed.units
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    np.add.at(counts, (np.repeat(np.arange(len(outcomes)), observed.units), bins), right - confidences)
    return counts


def _error_of_sums(sums: Values) -> Values:
    """Returns the calibration error, `(samples,)`, from the sums of `count_calibration` over drawn rows."""
    distances: Values = np.abs(sums[:, :BINS]).sum(axis=1)
    return distances / np.maximum(sums[:, BINS], 1)


def _flat(outcomes: Outcomes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the true and the predicted labels of all units, `(units,)` each."""
    return np.concatenate(outcomes.gold), np.concatenate(outcomes.decisions)
