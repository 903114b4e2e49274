"""Compares two models on the same rows: metric, prediction changes, calibration, and losses per label and per length.

One paired bootstrap gives all intervals: rows are drawn with replacement, the same rows for both models. `gates`
judges these intervals.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap, metrics
from deploykit.evaluation.metrics import Outcomes, Statistic, Values, Weights, items, statistic_of_sums, units
from deploykit.methods import Frozen
from deploykit.tasks import Example, Prediction, Spec, Task, are_same

MAX_FLIPPED_ROWS = 50  # rows with a prediction change that a manifest lists, to keep it small


class Figure(NamedTuple):
    """A figure of a comparison, computed by `statistic`; it has one value for each of the `groups` of rows.

    The group "" is all rows together. The statistic returns `(samples, groups)`, or `(samples,)` for a single group.
    """

    name: str
    statistic: Statistic
    groups: tuple[str, ...] = ("",)


class Comparison(Frozen):
    """A model compared with a reference on one split; positive values mean that the model is worse.

    Attributes:
        metric: name of the task's first metric.
        drop: loss of that metric.
        flips: share of the rows with a prediction change; None if the task does not count them.
        calibration: increase of the expected calibration error; None if the task has no such error.
        by_label: loss of recall, by label (or by kind of entity).
        by_length: loss of the first metric, by range of lengths in tokens; each range has about a quarter of the rows.
        rows: number of compared rows.
        flipped: indices of rows with a prediction change, at most the first `MAX_FLIPPED_ROWS`.
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
    name, changed = task.METRICS[0], np.zeros(len(examples))  # 1 for each row with a prediction change
    loss = metrics.loss(name, before, after)
    figures = [Figure("drop", loss)]
    if "changes" in task.FIGURES:
        decisions = zip(before.decisions, after.decisions, strict=True)
        changed = np.array([not are_same(old, new) for old, new in decisions], dtype=float)
        figures.append(Figure("flips", statistic_of_sums(changed[:, None], lambda sums: sums / len(examples))))
    if "calibration" in task.FIGURES:
        error_before, error_after = (units.calibration_error(outcomes) for outcomes in (before, after))
        figures.append(Figure("calibration", lambda weights: error_after(weights) - error_before(weights)))
    if "labels" in task.FIGURES:
        labels, recall_loss = items.recall_losses(before, after)
        figures.append(Figure("by_label", recall_loss, labels))
    for group, is_in_group in group_by_length(lengths or ()).items():
        figures.append(Figure("by_length", partial(_loss_in_group, loss, is_in_group), (group,)))
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


def describe_changes(
    task: Task,
    spec: Spec,
    examples: Sequence[Example],
    reference: Sequence[Prediction],
    predictions: Sequence[Prediction],
    rows: Sequence[int],
) -> list[dict[str, str]]:
    """Describes the prediction changes in some rows, for the report.

    Args:
        task: see `compare`.
        spec: see `compare`.
        examples: see `compare`.
        reference: see `compare`.
        predictions: see `compare`.
        rows: indices of the rows; see `Comparison.flipped`.

    Returns:
        For each change, `text`, `true`, and the predictions `before` and `after`.
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
        By the name of each group, such as `"up to 19 tokens"` or `"20 to 27 tokens"`: whether each row is in the group,
        `(rows,)`. There are fewer than four groups if quartiles are equal.
    """
    if not lengths:
        return {}
    longest = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="lower"))  # of each group
    groups = np.searchsorted(longest, lengths)
    starts = ["up to", *(f"{end + 1} to" for end in longest[:-1])]
    return {f"{starts[group]} {end} tokens": groups == group for group, end in enumerate(longest)}


def _loss_in_group(loss: Statistic, is_in_group: npt.NDArray[np.bool_], weights: Weights) -> Values:
    """Computes a loss on the drawn rows that belong to a group."""
    return loss(weights * is_in_group)


def _bootstrap(figures: Sequence[Figure], rows: int, seed: int) -> dict[str, dict[str, Metric]]:
    """Computes every figure with its interval, all on the same draws of rows.

    Intervals are widened to include their value: the calibration error of a draw tends to be larger than that of the
    rows it is drawn from, so the quantiles of its change may both lie on one side of the value.

    Returns:
        Values by name of the figure and group.
    """
    all_rows_once = np.ones((1, rows), dtype=np.int64)
    draws = [all_rows_once, *bootstrap.draw_weights(rows, seed)]
    values: dict[str, dict[str, Metric]] = defaultdict(dict)
    for figure in figures:
        samples = [figure.statistic(weights).reshape(len(weights), -1) + 0.0 for weights in draws]  # no -0.0
        for group, (value, *resampled) in zip(figure.groups, np.concatenate(samples).T.tolist(), strict=True):
            low, high = bootstrap.interval(np.array(resampled))
            values[figure.name][group] = Metric(value=value, low=min(low, value), high=max(high, value))
    return values
