"""Compares two models on the same rows: metric, prediction changes, calibration, and losses per label and per length.

Every figure is a function of counts summed over rows, so one paired bootstrap serves them all: rows are drawn with
replacement, the same rows for both models. Intervals are the 2.5 and 97.5 % quantiles. `gates` decides from these
intervals.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt

from deploykit.artifact import Metric, Record
from deploykit.evaluation import metrics
from deploykit.tasks import Example, Float32, Task

MAX_FLIPPED_ROWS = 50  # rows with a prediction change that a manifest lists, to keep it small
Counts = npt.NDArray[np.float64]
Figure = tuple[Counts, Callable[[Counts], Counts]]  # counts of each row `(rows, ...)`; a function of their sum


class Comparison(Record):
    """A model compared with a reference on one split; positive values are worse.

    `drop` is the loss of the task's first metric, `flips` the share of rows with a prediction change, `calibration` the
    increase of the expected calibration error, which is negative if the probabilities became more accurate. `by_label`
    is the loss of recall per label (per kind of entity). `by_length` is the loss of the first metric in quarters of the
    rows by number of tokens. `flipped` are the indices of the first rows with a prediction change.
    """

    metric: str
    drop: Metric
    flips: Metric
    calibration: Metric
    by_label: dict[str, Metric]
    by_length: dict[str, Metric]
    rows: int
    flipped: tuple[int, ...]


def compare(
    task: Task,
    examples: Sequence[Example],
    labels: Sequence[str],
    reference: Sequence[Float32],
    scores: Sequence[Float32],
    seed: int,
    lengths: Sequence[int] | None = None,
) -> Comparison:
    """Compares two models row by row.

    Args:
        task: its first metric is compared.
        examples: the labelled rows.
        labels: names of the label indices.
        reference: scores of the reference, one array `(units, labels)` per row.
        scores: scores of the model, like `reference`.
        seed: of the bootstrap.
        lengths: tokens of each row; without them, `by_length` is empty.
    """
    name, gold = task.METRICS[0], [task.targets(example, labels) for example in examples]
    before, after = metrics.predictions(reference), metrics.predictions(scores)
    changed = np.array([not np.array_equal(a, b) for a, b in zip(before, after, strict=True)], dtype=float)
    counts = np.stack([metrics.counts(name, gold, rows, labels) for rows in (before, after)], axis=1)
    confidences = np.stack([metrics.calibration(gold, rows) for rows in (reference, scores)], axis=1)
    loss = partial(_loss, name=name)
    figures: dict[tuple[str, str], Figure] = {
        ("drop", ""): (counts, loss),
        ("flips", ""): (changed, lambda summed: summed / len(gold)),
        ("calibration", ""): (confidences, _calibration_growth),
    }
    recalls = [metrics.recalls(name, gold, rows, labels) for rows in (before, after)]
    for label in recalls[0]:
        figures["by_label", label] = np.stack([recall[label] for recall in recalls], axis=1), _recall_loss
    for bucket, inside in buckets(lengths or ()).items():
        figures["by_length", bucket] = (counts.T * inside).T, loss
    values = _bootstrap(figures, seed)
    return Comparison(
        metric=name,
        **{figure: values[figure, ""] for figure in ("drop", "flips", "calibration")},
        by_label={member: value for (figure, member), value in values.items() if figure == "by_label"},
        by_length={member: value for (figure, member), value in values.items() if figure == "by_length"},
        rows=len(gold),
        flipped=tuple(np.flatnonzero(changed)[:MAX_FLIPPED_ROWS].tolist()),
    )


def flips(
    task: Task,
    examples: Sequence[Example],
    labels: Sequence[str],
    reference: Sequence[Float32],
    scores: Sequence[Float32],
    rows: Sequence[int],
) -> list[dict[str, str]]:
    """Lists the units whose prediction changed: their text, true label, and the labels before and after.

    Args:
        task: divides a text into units.
        examples: the labelled rows.
        labels: names of the label indices.
        reference: scores of the reference.
        scores: scores of the model.
        rows: indices of the rows to list; see `Comparison.flipped`.
    """
    changes = []
    for row in rows:
        text, true = examples[row].text, task.targets(examples[row], labels)
        before, after = reference[row].argmax(axis=-1), scores[row].argmax(axis=-1)
        for unit in np.flatnonzero(before != after):
            start, end = task.units(text)[unit]
            indices = {"true": true[unit], "before": before[unit], "after": after[unit]}
            changes.append({"text": text[start:end], **{name: labels[index] for name, index in indices.items()}})
    return changes


def buckets(lengths: Sequence[int]) -> dict[str, npt.NDArray[np.bool_]]:
    """Groups rows by the quartiles of their lengths.

    Args:
        lengths: tokens of each row.

    Returns:
        For each group, named like `"up to 19 tokens"` or `"20 to 27 tokens"`, whether each row is in it, `(rows,)`.
        Equal quartiles give fewer than four groups.
    """
    if not lengths:
        return {}
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="lower"))
    groups = np.searchsorted(edges, lengths)
    starts = ["up to", *(f"{edge + 1} to" for edge in edges[:-1])]
    return {f"{starts[group]} {edge} tokens": groups == group for group, edge in enumerate(edges)}


def _loss(summed: Counts, name: str) -> Counts:
    """Returns the loss of a metric for each draw, from the counts of reference and model, `(draws, 2, ...)`."""
    return -_change(metrics.ratio(name, np.moveaxis(summed, 1, 0)))


def _calibration_growth(summed: Counts) -> Counts:
    return _change(metrics.calibration_error(np.moveaxis(summed, 1, 0)))


def _recall_loss(summed: Counts) -> Counts:
    return -_change(np.moveaxis(summed[..., 0] / np.maximum(summed[..., 1], 1), 1, 0))


def _change(models: Counts) -> Counts:
    """Returns the difference of `(2, ...)`, the values of the reference and of the model."""
    return cast(Counts, models[1] - models[0])


def _bootstrap(figures: Mapping[tuple[str, str], Figure], seed: int) -> dict[tuple[str, str], Metric]:
    """Returns every figure with its interval; all figures use the same draws of rows.

    Intervals are widened to include their value: the calibration error of a draw tends to be larger than that of the
    rows it is drawn from, so the quantiles of its change may both lie on one side of the value.
    """
    columns = [counts.reshape(len(counts), -1) for counts, _ in figures.values()]
    table = np.concatenate(columns, axis=1)
    summed = np.concatenate([table.sum(axis=0, keepdims=True), metrics.resampled(table, seed)])
    pieces = np.split(summed, np.cumsum([column.shape[1] for column in columns])[:-1], axis=1)
    values = {}
    for (name, (counts, figure)), piece in zip(figures.items(), pieces, strict=True):
        value, *samples = (figure(piece.reshape(-1, *counts.shape[1:])) + 0.0).tolist()  # + 0.0 turns -0.0 into 0.0
        low, high = np.quantile(samples, [0.025, 0.975])
        values[name] = Metric(value=value, low=min(low, value), high=max(high, value))
    return values
