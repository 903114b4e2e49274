"""Metrics of tasks that give one label to each unit: decisions are arrays of label indices, `(units,)`."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, matthews_corrcoef, roc_auc_score

from deploykit.evaluation.metrics import Outcomes, Statistic, Values, of_sums
from deploykit.tasks import Observations

BINS = 15  # equal bins of the calibration error, as in the paper


class Accuracy:
    """The share of units whose label is right."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes it with scikit-learn."""
        return float(accuracy_score(*_flat(outcomes)))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns right units over all units of drawn rows."""
        pairs = zip(outcomes.gold, outcomes.decisions, strict=True)
        table = np.array([((gold == decision).sum(), len(gold)) for gold, decision in pairs], dtype=float)
        return of_sums(table, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))


class Matthews:
    """Matthews' correlation coefficient of all labels (Gorodkin, 2004), from -1 to 1."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes it with scikit-learn."""
        return float(matthews_corrcoef(*_flat(outcomes)))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes it from how many drawn units are right, and how many of each label are true and predicted."""
        count, table = len(outcomes.spec.labels), _label_counts(outcomes)

        def value(sums: Values) -> Values:
            right, true, predicted = sums[:, 0], sums[:, 1 : 1 + count], sums[:, 1 + count :]
            total = true.sum(axis=1)
            covariance = right * total - (true * predicted).sum(axis=1)
            spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
            return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1)), 0.0)

        return of_sums(table, value)


def _label_counts(outcomes: Outcomes) -> Any:
    """Returns for each row how many units are right, and how many of each label are true and predicted, sparse."""
    count = len(outcomes.spec.labels)
    row_of_unit = np.repeat(np.arange(len(outcomes)), [len(gold) for gold in outcomes.gold])
    gold, predicted = _flat(outcomes)
    right = gold == predicted
    rows = np.concatenate([row_of_unit[right], row_of_unit, row_of_unit])
    columns = np.concatenate([np.zeros(right.sum(), dtype=np.int64), 1 + gold, 1 + count + predicted])
    return coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(outcomes), 1 + 2 * count)).tocsr()


class RocAuc:
    """The area under the ROC curve; of more than two labels, the mean of each label against the rest.

    Labels that are the gold of no row, or of all rows, are left out. Without others, the area is NaN.
    """

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes it with scikit-learn."""
        areas = [roc_auc_score(true, scores) for true, scores in _against_rest(outcomes) if 0 < true.mean() < 1]
        return float(np.mean(areas)) if areas else float("nan")

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes it for drawn rows, from the order of the scores: how many pairs are in the right order."""
        of_row = np.repeat(np.arange(len(outcomes)), [len(gold) for gold in outcomes.gold])
        columns, whole = [], self.value(outcomes)
        for true, scores in _against_rest(outcomes):
            ranks = np.unique(scores, return_inverse=True)[1]
            columns.append((true, ranks))

        def value(weights: npt.NDArray[Any]) -> Values:
            drawn = weights[:, of_row]
            areas = np.stack([_areas(true, ranks, drawn) for true, ranks in columns])
            known = ~np.isnan(areas)
            mean: Values = np.where(known, areas, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
            return np.where(known.any(axis=0), mean, whole)

        return value


def _against_rest(outcomes: Outcomes) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]]:
    """Returns for each label whether it is right, and its probability, `(units,)` each; of two labels the second."""
    gold, probabilities = np.concatenate(outcomes.gold), np.concatenate(outcomes.probabilities)
    labels = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [(gold == label, probabilities[:, label]) for label in labels]


def _areas(true: npt.NDArray[np.bool_], ranks: npt.NDArray[np.intp], drawn: npt.NDArray[Any]) -> Values:
    """Returns the area for each sample, `(samples,)`; NaN if all drawn units are right, or none."""
    count = int(ranks.max(initial=0)) + 1
    right, wrong = (
        np.stack([np.bincount(ranks[side], sample[side], count) for sample in drawn]) for side in (true, ~true)
    )
    below = np.cumsum(wrong, axis=1) - wrong / 2  # of equal scores, half of the pairs count
    pairs = right.sum(axis=1) * wrong.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: Values = (right * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
    return areas


class AveragePrecision:
    """The average precision of each label that is true somewhere, averaged over labels; of several labels per text."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes it with scikit-learn."""
        true, scores = _indicators(outcomes)
        values = [average_precision_score(*pair) for pair in zip(true.T, scores.T, strict=True) if pair[0].any()]
        return float(np.mean(values)) if values else 0.0

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes it for drawn rows, from the order of the scores."""
        true, scores = _indicators(outcomes)

        def value(weights: npt.NDArray[Any]) -> Values:
            labels = [_precisions(*pair, weights) for pair in zip(true.T, scores.T, strict=True)]
            means, known = np.stack([mean for mean, _ in labels]), np.stack([any_true for _, any_true in labels])
            averaged: Values = np.where(known, means, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
            return averaged

        return value


def _indicators(outcomes: Outcomes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Returns whether each label is true, and its probability, `(rows, labels)` each."""
    scores = np.concatenate(outcomes.probabilities)
    true = np.zeros(scores.shape, dtype=bool)
    for row, gold in enumerate(outcomes.gold):
        true[row, gold] = True
    return true, scores


def _precisions(
    true: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], weights: npt.NDArray[Any]
) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Returns the average precision of a label in each sample, and whether it is true there, `(samples,)` each."""
    ranks = np.unique(-scores, return_inverse=True)[1]
    count = int(ranks.max(initial=0)) + 1
    right, every = (
        np.cumsum([np.bincount(ranks[side], sample[side], count) for sample in weights], axis=1)
        for side in (true, np.ones(len(true), dtype=bool))
    )
    gained = np.diff(right, axis=1, prepend=0)
    total = right[:, -1]
    return (gained * right / np.maximum(every, 1)).sum(axis=1) / np.maximum(total, 1), total > 0


def confusion(outcomes: Outcomes) -> list[list[int]]:
    """Returns how many units of each label (rows) got each label (columns)."""
    matrix: list[list[int]] = confusion_matrix(*_flat(outcomes), labels=range(len(outcomes.spec.labels))).tolist()
    return matrix


def calibration_error(outcomes: Outcomes) -> Statistic:
    """Returns the expected calibration error of the top label (Guo et al., 2017, section 2) of drawn rows.

    It is the mean over units of the distance between accuracy and mean probability in the unit's bin.
    """
    observed = outcomes.task.observe(outcomes.predictions, outcomes.spec)
    return of_sums(count_calibration(outcomes, observed), _calibration_error)


def count_calibration(outcomes: Outcomes, observed: Observations) -> Values:
    """Returns the counts of each row from which the calibration error follows, `(rows, BINS + 1)`.

    The last column counts the units. Each other column belongs to a bin, and sums hits minus probability over the units
    whose highest probability lies in that bin.
    """
    hits = observed.labels == np.concatenate(outcomes.gold)
    confidence = np.nan_to_num(observed.confidences, nan=1.0)  # NaN is wrong with full confidence
    table = np.zeros((len(outcomes), BINS + 1))
    table[:, BINS] = observed.units
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    np.add.at(table, (np.repeat(np.arange(len(outcomes)), observed.units), bins), hits - confidence)
    return table


def _calibration_error(sums: Values) -> Values:
    distances: Values = np.abs(sums[:, :BINS]).sum(axis=1)
    return distances / np.maximum(sums[:, BINS], 1)


def _flat(outcomes: Outcomes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.concatenate(outcomes.gold), np.concatenate(outcomes.decisions)
