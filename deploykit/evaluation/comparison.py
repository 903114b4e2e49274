"""Compares two models on the same rows: metric, prediction changes, calibration, and losses per label and per length.

Every figure is a function of counts summed over rows, so one paired bootstrap gives all intervals: rows are drawn with
replacement, the same rows for both models. `gates` decides from these intervals.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array, hstack

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap, metrics
from deploykit.methods import Frozen
from deploykit.tasks import Example, Prediction, Spec, Task

MAX_FLIPPED_ROWS = 50  # rows with a prediction change that a manifest lists, to keep it small
Counts = npt.NDArray[np.float64]


class Figure(NamedTuple):
    """A function of counts that are summed over rows.

    `table` holds the counts of each row, sparse `(rows, columns)`, those of both models side by side. `function` maps
    sums `(samples, columns)` to a value for each of `members`.
    """

    name: str
    table: metrics.Table
    function: Callable[[Counts], Counts]
    members: tuple[str, ...] = ("",)


class Comparison(Frozen):
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
    spec: Spec,
    examples: Sequence[Example],
    reference: Sequence[Prediction],
    predictions: Sequence[Prediction],
    seed: int,
    lengths: Sequence[int] | None = None,
) -> Comparison:
    """Compares two models row by row.

    Args:
        task: its first metric is compared.
        spec: of both models.
        examples: the labelled rows.
        reference: predictions of the reference, one per row.
        predictions: predictions of the model, one per row.
        seed: of the bootstrap.
        lengths: tokens of each row; without them, `by_length` is empty.
    """
    name, labels, gold = task.METRICS[0], spec.labels, [task.gold(example, spec) for example in examples]
    before, after = ([task.decide(row, spec) for row in rows] for rows in (reference, predictions))
    changed = np.array([not np.array_equal(a, b) for a, b in zip(before, after, strict=True)], dtype=float)
    counts = hstack([metrics.count_rows(name, gold, rows, labels) for rows in (before, after)], format="csr")
    observed = [task.observe(rows, spec) for rows in (reference, predictions)]
    confidences = np.concatenate([metrics.count_calibration(gold, rows) for rows in observed], axis=1)
    (members, first), (_, second) = (metrics.count_recalls(name, gold, rows, labels) for rows in (before, after))
    decrease = partial(_decrease, partial(metrics.compute_ratio, name))
    figures = [
        Figure("drop", counts, decrease),
        Figure("flips", csr_array(changed[:, None]), lambda summed: summed / len(gold)),
        Figure(
            "calibration", csr_array(confidences), lambda summed: -_decrease(metrics.compute_calibration_error, summed)
        ),
        Figure("by_label", hstack([first, second], format="csr"), partial(_decrease, metrics.compute_recall), members),
    ]
    for bucket, inside in group_by_length(lengths or ()).items():
        figures.append(Figure("by_length", diags_array(inside.astype(float)) @ counts, decrease, (bucket,)))
    values = _bootstrap(figures, seed)
    return Comparison(
        metric=name,
        **{figure: values[figure][""] for figure in ("drop", "flips", "calibration")},
        by_label=values["by_label"],
        by_length=values.get("by_length", {}),
        rows=len(gold),
        flipped=tuple(np.flatnonzero(changed)[:MAX_FLIPPED_ROWS].tolist()),
    )


def flips(
    task: Task,
    spec: Spec,
    examples: Sequence[Example],
    reference: Sequence[Prediction],
    predictions: Sequence[Prediction],
    rows: Sequence[int],
) -> list[dict[str, str]]:
    """Lists what changed in some rows: the text, what is true, and the predictions before and after.

    The arguments are those of `compare`, and the indices of the rows, see `Comparison.flipped`.
    """
    return [
        change
        for row in rows
        for change in task.changes(
            examples[row], task.decide(reference[row], spec), task.decide(predictions[row], spec), spec
        )
    ]


def group_by_length(lengths: Sequence[int]) -> dict[str, npt.NDArray[np.bool_]]:
    """Groups rows by the quartiles of their lengths in tokens.

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


def _decrease(value: Callable[[Counts], Counts], summed: Counts) -> Counts:
    """Returns by how much a value is lower for the model; `summed` has the reference's counts, then the model's."""
    reference, model = np.split(summed, 2, axis=-1)
    return value(reference) - value(model)


def _bootstrap(figures: Sequence[Figure], seed: int) -> dict[str, dict[str, Metric]]:
    """Returns every figure with its interval, by name and member; all figures use the same draws of rows.

    Intervals are widened to include their value: the calibration error of a draw tends to be larger than that of the
    rows it is drawn from, so the quantiles of its change may both lie on one side of the value.
    """
    table = hstack([figure.table for figure in figures], format="csr")
    ends = np.cumsum([figure.table.shape[1] for figure in figures])[:-1]
    samples: list[list[Counts]] = [[] for _ in figures]
    for summed in chain([table.sum(axis=0)[None]], bootstrap.draw_sums(table, seed)):  # the sum of the rows comes first
        for figure, part, results in zip(figures, np.split(summed, ends, axis=1), samples, strict=True):
            results.append(figure.function(part).reshape(len(part), -1) + 0.0)  # + 0.0 turns -0.0 into 0.0
    values: dict[str, dict[str, Metric]] = defaultdict(dict)
    for figure, results in zip(figures, samples, strict=True):
        for member, (value, *resampled) in zip(figure.members, np.concatenate(results).T.tolist(), strict=True):
            low, high = bootstrap.interval(np.array(resampled))
            values[figure.name][member] = Metric(value=value, low=min(low, value), high=max(high, value))
    return values
