"""Compares two models on the same rows: metric, prediction changes, calibration, and losses per label and per length.

One paired bootstrap gives all intervals: rows are drawn with replacement, the same rows for both models. `gates`
decides from these intervals.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap, metrics
from deploykit.evaluation.metrics import Outcomes, Statistic, Values, Weights, items, of_sums, units
from deploykit.methods import Frozen
from deploykit.tasks import Example, Prediction, Spec, Task, are_same

MAX_FLIPPED_ROWS = 50  # rows with a prediction change that a manifest lists, to keep it small


class Figure(NamedTuple):
    """A figure of some rows; `statistic` returns a value for each of `members`, `(samples, members)`."""

    name: str
    statistic: Statistic
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
    flips: Metric | None
    calibration: Metric | None
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
    before, after = (Outcomes.of(task, spec, examples, rows) for rows in (reference, predictions))
    name, changed = task.METRICS[0], np.zeros(len(examples))
    loss = metrics.differences(name, before, after)
    figures = [Figure("drop", loss)]
    if "changes" in task.FIGURES:
        decisions = zip(before.decisions, after.decisions, strict=True)
        changed = np.array([not are_same(first, second) for first, second in decisions], dtype=float)
        figures.append(Figure("flips", of_sums(changed[:, None], lambda sums: sums / len(examples))))
    if "calibration" in task.FIGURES:
        error = [units.calibration_error(rows) for rows in (before, after)]
        figures.append(Figure("calibration", lambda weights: error[1](weights) - error[0](weights)))
    if "labels" in task.FIGURES:
        members, recall = items.recalls(before, after)
        figures.append(Figure("by_label", recall, members))
    for group, inside in group_by_length(lengths or ()).items():
        figures.append(Figure("by_length", partial(_within, loss, inside), (group,)))
    values = _bootstrap(figures, len(examples), seed)
    return Comparison(
        metric=name,
        drop=values["drop"][""],
        flips=values["flips"][""] if "flips" in values else None,
        calibration=values["calibration"][""] if "calibration" in values else None,
        by_label=values.get("by_label", {}),
        by_length=values.get("by_length", {}),
        rows=len(examples),
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


def _within(statistic: Statistic, inside: npt.NDArray[np.bool_], weights: Weights) -> Values:
    """Returns the statistic of those of the drawn rows that are inside a group."""
    return statistic(weights * inside)


def _bootstrap(figures: Sequence[Figure], rows: int, seed: int) -> dict[str, dict[str, Metric]]:
    """Returns every figure with its interval, by name and member; all figures use the same draws of rows.

    Intervals are widened to include their value: the calibration error of a draw tends to be larger than that of the
    rows it is drawn from, so the quantiles of its change may both lie on one side of the value.
    """
    draws = [np.ones((1, rows), dtype=np.int64), *bootstrap.draw_weights(rows, seed)]  # the rows as they are come first
    values: dict[str, dict[str, Metric]] = defaultdict(dict)
    for figure in figures:
        samples = [figure.statistic(weights).reshape(len(weights), -1) + 0.0 for weights in draws]  # no -0.0
        for member, (value, *resampled) in zip(figure.members, np.concatenate(samples).T.tolist(), strict=True):
            low, high = bootstrap.interval(np.array(resampled))
            values[figure.name][member] = Metric(value=value, low=min(low, value), high=max(high, value))
    return values
