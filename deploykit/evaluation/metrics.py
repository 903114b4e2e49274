"""The metrics that tasks name, with bootstrap intervals: of units by scikit-learn, of entities by seqeval.

Rows are lists of arrays `(units,)` of label indices. Every metric is a ratio of counts, so its interval comes from
counts that are summed over resampled rows: the same value as the library's, a thousand times faster (a test compares
them).
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import seqeval.metrics
from scipy.sparse import coo_array, csr_array
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.metrics import f1_score as flat_f1_score

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap
from deploykit.tasks import Int64, Observations
from deploykit.tasks._tags import OUTSIDE, decode_entities

Rows = Sequence[Int64]
Table = Any  # a sparse array of counts, one row per row of the data
BINS = 15  # equal bins of the calibration error, as in the paper


def accuracy(gold: Rows, predicted: Rows, labels: Sequence[str]) -> float:
    """Returns the share of units whose label is right."""
    return float(accuracy_score(np.concatenate(gold), np.concatenate(predicted)))


def macro_f1(gold: Rows, predicted: Rows, labels: Sequence[str]) -> float:
    """Returns the F1 averaged over labels, each label counting the same."""
    flat = np.concatenate(gold), np.concatenate(predicted)
    return float(flat_f1_score(*flat, average="macro", labels=range(len(labels)), zero_division=0.0))


def entity_f1(gold: Rows, predicted: Rows, labels: Sequence[str]) -> float:
    """Returns the micro-averaged F1 of entities, as in CoNLL: an entity is right only if its ends and label are."""
    tags = [[[labels[index] for index in row] for row in rows] for rows in (gold, predicted)]
    return float(seqeval.metrics.f1_score(*tags, average="micro", zero_division=0))


# The value of each metric by name. For its interval, a new one also needs a case in `count_rows` and `compute_ratio`,
# and in `count_labels` if it counts entities.
METRIC_FUNCTIONS: dict[str, Callable[[Rows, Rows, Sequence[str]], float]] = {
    metric.__name__: metric for metric in (accuracy, macro_f1, entity_f1)
}


def compute(names: Sequence[str], gold: Rows, predicted: Rows, labels: Sequence[str]) -> dict[str, float]:
    """Computes metrics by name.

    Args:
        names: keys of `METRIC_FUNCTIONS`.
        gold: the true label of each unit, one array per row.
        predicted: the same shapes.
        labels: names of the label indices.
    """
    return {name: METRIC_FUNCTIONS[name](gold, predicted, labels) for name in names}


def with_intervals(
    names: Sequence[str], gold: Rows, predicted: Rows, labels: Sequence[str], seed: int
) -> dict[str, Metric]:
    """Computes the named metrics, each with its 95 % bootstrap interval over rows; see `compute`."""
    intervals = {}
    for name, value in compute(names, gold, predicted, labels).items():
        table = count_rows(name, gold, predicted, labels)
        samples = [compute_ratio(name, sums) for sums in bootstrap.draw_sums(table, seed)]
        low, high = bootstrap.interval(np.concatenate(samples))
        intervals[name] = Metric(value=value, low=low, high=high)
    return intervals


def count_labels(name: str, gold: Rows, predicted: Rows, labels: Sequence[str]) -> tuple[tuple[str, ...], Table]:
    """Counts for each row and label how often the label is right, true and predicted.

    Returns:
        The names of the labels, and the sparse counts `(rows, 3 * names)`: right, true and predicted. For the metric
        `entity_f1` whole entities are counted, and the names are theirs, without prefix; otherwise units are counted.
    """
    if name == "entity_f1":
        names = tuple(sorted({label.partition("-")[2] for label in labels if label != OUTSIDE}))
        place = {label: index for index, label in enumerate(names)}
        cells = [
            (row, part * len(names) + place[label])
            for row, (true, guess) in enumerate(zip(_spans(gold, labels), _spans(predicted, labels), strict=True))
            for part, spans in enumerate((true & guess, true, guess))
            for label, *_ in spans
        ]
        rows, columns = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    else:
        names = tuple(labels)
        row_of_unit = np.repeat(np.arange(len(gold)), [len(row) for row, _ in zip(gold, predicted, strict=True)])
        true, guess = np.concatenate(gold), np.concatenate(predicted)
        right = true == guess
        rows = np.concatenate([row_of_unit[right], row_of_unit, row_of_unit])
        columns = np.concatenate([true[right], len(names) + true, 2 * len(names) + guess])
    return names, coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(gold), 3 * len(names))).tocsr()


def count_rows(name: str, gold: Rows, predicted: Rows, labels: Sequence[str]) -> Table:
    """Returns the counts of each row from which `compute_ratio` computes a metric, sparse `(rows, columns)`.

    The columns are those of `count_labels`, summed over the labels unless the metric is an average over labels.
    """
    names, table = count_labels(name, gold, predicted, labels)
    if name == "macro_f1":
        return table
    return table @ csr_array(np.repeat(np.eye(3), len(names), axis=0))


def compute_ratio(name: str, summed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Computes a metric from summed counts: accuracy is right / true, F1 is 2 right / (true + predicted).

    Args:
        name: a key of `METRIC_FUNCTIONS`.
        summed: sums of `count_rows` over rows, `(..., columns)`.
    """
    right, true, guess = np.split(summed, 3, axis=-1)
    numerator, denominator = (right, true) if name == "accuracy" else (2 * right, true + guess)
    return cast("npt.NDArray[np.float64]", (numerator / np.maximum(denominator, 1)).mean(axis=-1))


def per_label(task_metrics: Sequence[str], gold: Rows, predicted: Rows, labels: Sequence[str]) -> dict[str, Any]:
    """Returns precision, recall, F1 and support of each label, and the confusion matrix of the units.

    If the metrics of the task include `entity_f1`, the labels are those of the entities that occur.
    """
    of_entities = "entity_f1" in task_metrics
    names, table = count_labels("entity_f1" if of_entities else "accuracy", gold, predicted, labels)
    sums = np.split(table.sum(axis=0), 3)
    matrix = confusion_matrix(np.concatenate(gold), np.concatenate(predicted), labels=range(len(labels)))
    return {
        "confusion": matrix.tolist(),
        "labels": {
            label: {
                "precision": float(right / max(guess, 1)),
                "recall": float(right / max(true, 1)),
                "f1-score": float(2 * right / max(true + guess, 1)),
                "support": float(true),
            }
            for label, right, true, guess in zip(names, *sums, strict=True)
            if true + guess or not of_entities
        },
    }


def count_recalls(name: str, gold: Rows, predicted: Rows, labels: Sequence[str]) -> tuple[tuple[str, ...], Table]:
    """Returns the labels that are true somewhere, and their counts of right and true, sparse `(rows, 2 * labels)`."""
    names, table = count_labels(name, gold, predicted, labels)
    occurring = np.flatnonzero(np.split(table.sum(axis=0), 3)[1])
    columns = np.concatenate([occurring, len(names) + occurring])
    return tuple(names[index] for index in occurring), table[:, columns]


def compute_recall(summed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Computes the recall of each label from summed counts of `count_recalls`, `(..., 2 * labels)`."""
    right, true = np.split(summed, 2, axis=-1)
    return right / np.maximum(true, 1)


def count_calibration(gold: Rows, observed: Observations) -> npt.NDArray[np.float64]:
    """Returns for each row the counts from which `compute_calibration_error` follows, `(rows, BINS + 1)`.

    The last column counts the units. Each other column belongs to a bin, and sums hits minus probability over the units
    whose highest probability lies in that bin.

    Args:
        gold: the true label of each unit, one array per row.
        observed: of the predictions for the same rows.
    """
    hits = observed.labels == np.concatenate(gold)
    confidence = np.nan_to_num(observed.confidences, nan=1.0)  # NaN is wrong with full confidence
    table = np.zeros((len(gold), BINS + 1))
    table[:, BINS] = observed.units
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    np.add.at(table, (np.repeat(np.arange(len(gold)), observed.units), bins), hits - confidence)
    return table


def compute_calibration_error(summed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Computes the expected calibration error of the top label (Guo et al., 2017, section 2) from summed counts.

    It is the mean over units of the distance between accuracy and mean probability in the unit's bin.

    Args:
        summed: sums of `count_calibration` over rows, `(..., BINS + 1)`.
    """
    distances = np.abs(summed[..., :BINS]).sum(axis=-1)
    return cast("npt.NDArray[np.float64]", distances / np.maximum(summed[..., BINS], 1))


def _spans(rows: Rows, labels: Sequence[str]) -> list[set[tuple[str, int, int]]]:
    """Returns label, first and last unit of each entity, one set per row."""
    return [set(decode_entities([labels[index] for index in row])) for row in rows]
