"""The metrics that tasks name, with bootstrap intervals: of units by scikit-learn, of entities by seqeval.

Rows are lists of arrays `(units,)` of label indices. For the interval of a metric that is a ratio of
counts, the counts are summed over resampled rows: the same value as the library's, a thousand times
faster (a test compares them).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import seqeval.metrics
from scipy.sparse import coo_array, csr_array
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.metrics import f1_score as flat_f1_score

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap
from deploykit.tasks import Float32, Int64, softmax
from deploykit.tasks._tags import entities

Rows = Sequence[Int64]
Table = Any  # a sparse array: what is counted in each row
BINS = 15  # of the calibration error


def accuracy(gold: Rows, predicted: Rows, labels: Sequence[str]) -> float:
    """Returns the share of units whose label is right."""
    return float(accuracy_score(np.concatenate(gold), np.concatenate(predicted)))


def macro_f1(gold: Rows, predicted: Rows, labels: Sequence[str]) -> float:
    """Returns the F1 averaged over labels, each label counting the same."""
    flat = np.concatenate(gold), np.concatenate(predicted)
    return float(flat_f1_score(*flat, average="macro", labels=range(len(labels)), zero_division=0.0))


def entity_f1(gold: Rows, predicted: Rows, labels: Sequence[str]) -> float:
    """Returns the micro-averaged F1 of whole entities, as in CoNLL: right only if both ends and label are."""
    tags = [[[labels[index] for index in row] for row in rows] for rows in (gold, predicted)]
    return float(seqeval.metrics.f1_score(*tags, average="micro", zero_division=0))


METRICS: dict[str, Callable[[Rows, Rows, Sequence[str]], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "entity_f1": entity_f1,
}


def compute(names: Sequence[str], gold: Rows, predicted: Rows, labels: Sequence[str]) -> dict[str, float]:
    """Computes the named metrics.

    Args:
        names: keys of `METRICS`.
        gold: the true label of each unit, one array a row.
        predicted: the same shapes.
        labels: names of the label indices.
    """
    return {name: METRICS[name](gold, predicted, labels) for name in names}


def with_intervals(
    names: Sequence[str], gold: Rows, predicted: Rows, labels: Sequence[str], seed: int
) -> dict[str, Metric]:
    """Computes the named metrics, each with its 95 % bootstrap interval over rows.

    Args:
        names: keys of `METRICS`.
        gold: the true label of each unit, one array a row.
        predicted: the same shapes.
        labels: names of the label indices.
        seed: of the resampling.
    """
    found = {}
    for name, value in compute(names, gold, predicted, labels).items():
        table = counts(name, gold, predicted, labels)
        low, high = bootstrap.interval(np.concatenate([ratio(name, sums) for sums in bootstrap.chunks(table, seed)]))
        found[name] = Metric(value=value, low=low, high=high)
    return found


def counts(name: str, gold: Rows, predicted: Rows, labels: Sequence[str]) -> Table:
    """Returns for each row the counts from which a metric follows, a sparse `(rows, columns)`; see `ratio`.

    Args:
        name: a key of `METRICS`.
        gold: the true label of each unit, one array a row.
        predicted: the same shapes.
        labels: names of the label indices.
    """
    pairs = zip(gold, predicted, strict=True)
    if name == "accuracy":
        return csr_array(np.array([_hits(a, b) for a, b in pairs], dtype=np.float64))
    if name == "entity_f1":
        return csr_array(np.array([_entities(a, b, labels) for a, b in pairs], dtype=np.float64))
    rows = np.repeat(np.arange(len(gold)), [len(a) for a, _ in pairs])
    true, guessed = np.concatenate(gold), np.concatenate(predicted)
    right = true == guessed
    columns = (true[right], len(labels) + true, 2 * len(labels) + guessed)
    return table_of(np.concatenate([rows[right], rows, rows]), np.concatenate(columns), (len(gold), 3 * len(labels)))


def table_of(rows: Int64, columns: Int64, shape: tuple[int, int]) -> Table:
    """Returns a sparse table that counts how often each pair of a row and a column occurs."""
    return coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()


def ratio(name: str, summed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turns summed counts into the metric.

    accuracy: right / all. F1: 2 tp / (true + predicted), for `macro_f1` averaged over labels.

    Args:
        name: a key of `METRICS`.
        summed: counts, `(..., columns)`.
    """
    if name == "accuracy":
        return summed[..., 0] / np.maximum(summed[..., 1], 1)
    right, true, guessed = np.split(summed, 3, axis=-1)
    f1 = 2 * right / np.maximum(true + guessed, 1)
    return cast("npt.NDArray[np.float64]", f1.mean(axis=-1))


def per_label(task_metrics: Sequence[str], gold: Rows, predicted: Rows, labels: Sequence[str]) -> dict[str, Any]:
    """Returns precision, recall, F1 and support of each label, and the confusion matrix of the units.

    Args:
        task_metrics: when they name `entity_f1`, labels are those of entities.
        gold: the true label of each unit, one array a row.
        predicted: the same shapes.
        labels: names of the label indices.
    """
    matrix = confusion_matrix(np.concatenate(gold), np.concatenate(predicted), labels=range(len(labels)))
    if "entity_f1" in task_metrics:
        pairs = [(_spans(a, labels), _spans(b, labels)) for a, b in zip(gold, predicted, strict=True)]
        right = Counter(label for a, b in pairs for label, *_ in a & b)
        true = Counter(label for a, _ in pairs for label, *_ in a)
        guessed = Counter(label for _, b in pairs for label, *_ in b)
        rows = {label: _row(right[label], true[label], guessed[label]) for label in sorted(true | guessed)}
    else:
        sums = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        rows = {label: _row(*found) for label, *found in zip(labels, *sums, strict=True)}
    return {
        "confusion": matrix.tolist(),
        "labels": {name: {key: float(value) for key, value in row.items()} for name, row in rows.items()},
    }


def recalls(name: str, gold: Rows, predicted: Rows, labels: Sequence[str]) -> tuple[tuple[str, ...], Table]:
    """Returns the labels that are true somewhere, and the counts of their recall in each row.

    The counts are a sparse `(rows, 2 * labels)`: those that are found, then those that are true.

    Args:
        name: a key of `METRICS`; with `entity_f1` labels are those of whole entities, otherwise of units.
        gold: the true label of each unit, one array a row.
        predicted: the same shapes.
        labels: names of the label indices.
    """
    true = partial(_true_entities if name == "entity_f1" else _true_units, labels=labels)
    pairs = enumerate(zip(gold, predicted, strict=True))
    units = [(label, row, hit) for row, (a, b) in pairs for label, hit in true(a, b)]
    names = tuple(sorted({label for label, _, _ in units}))
    place = {label: index for index, label in enumerate(names)}
    cells = [(row, place[label]) for label, row, hit in units if hit]
    cells += [(row, len(names) + place[label]) for label, row, _ in units]
    rows, columns = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    return names, table_of(rows, columns, (len(gold), 2 * len(names)))


def calibration(gold: Rows, scores: Sequence[Float32]) -> npt.NDArray[np.float64]:
    """Returns for each row the counts from which the calibration error follows, `(rows, 16)`; see `calibration_error`.

    The first fifteen: hits less probability, of the units whose highest probability lies in that bin. The last: units.

    Args:
        gold: the true label of each unit, one array a row.
        scores: one array `(units, labels)` a row.
    """
    units = np.array([len(row) for row in gold])
    probabilities = softmax(np.concatenate(scores))
    hits = probabilities.argmax(axis=-1) == np.concatenate(gold)
    sure = np.nan_to_num(probabilities.max(axis=-1), nan=1.0)  # what is no number was said without a doubt
    found = np.zeros((len(gold), BINS + 1))
    found[:, BINS] = units
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    np.add.at(found, (np.repeat(np.arange(len(gold)), units), bins), hits - sure)
    return found


def calibration_error(summed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turns summed counts into the expected calibration error of the top label (Guo et al., 2017, section 2).

    The mean over units of the distance between accuracy and probability in a unit's bin, of fifteen equal ones.

    Args:
        summed: counts with any leading axes.
    """
    distances = np.abs(summed[..., :BINS]).sum(axis=-1)
    return cast("npt.NDArray[np.float64]", distances / np.maximum(summed[..., BINS], 1))


def predictions(scores: Sequence[Float32]) -> list[Int64]:
    """Returns the best label of each unit."""
    return [row.argmax(axis=-1).astype(np.int64) for row in scores]


def _row(right: int, true: int, guessed: int) -> dict[str, float]:
    return {
        "precision": right / max(guessed, 1),
        "recall": right / max(true, 1),
        "f1-score": 2 * right / max(true + guessed, 1),
        "support": true,
    }


def _hits(gold: Int64, predicted: Int64) -> list[int]:
    return [int((gold == predicted).sum()), len(gold)]


def _entities(gold: Int64, predicted: Int64, labels: Sequence[str]) -> list[int]:
    true, guessed = (_spans(row, labels) for row in (gold, predicted))
    return [len(true & guessed), len(true), len(guessed)]


def _true_entities(gold: Int64, predicted: Int64, labels: Sequence[str]) -> list[tuple[str, bool]]:
    guessed = _spans(predicted, labels)
    return [(entity[0], entity in guessed) for entity in _spans(gold, labels)]


def _true_units(gold: Int64, predicted: Int64, labels: Sequence[str]) -> list[tuple[str, bool]]:
    return [(labels[index], bool(hit)) for index, hit in zip(gold, gold == predicted, strict=True)]


def _spans(row: Int64, labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """Returns label, first and last unit of each entity."""
    return set(entities([labels[index] for index in row]))
