"""Whether one model is as good as another on the same rows: drop, flips, calibration, and who pays for it.

Every figure follows from counts summed over rows, so one paired bootstrap serves them all: rows are drawn
with replacement, both models on the same draw. Intervals are the 2.5 and 97.5 % quantiles everywhere; what
they mean for a promise is said in `gates`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array, hstack

from deploykit.artifact import Metric, Record
from deploykit.evaluation import bootstrap, metrics
from deploykit.tasks import Example, Float32, Task

SHOWN_FLIPS = 50
Counts = npt.NDArray[np.float64]


class Figure(NamedTuple):
    """What follows from counts: `function` takes sums `(samples, columns)` and gives a value for each member.

    `table` holds the counts of each row, a sparse `(rows, columns)`; both models side by side.
    """

    name: str
    table: metrics.Table
    function: Callable[[Counts], Counts]
    members: tuple[str, ...] = ("",)


class Comparison(Record):
    """A model against a reference on one split; of all but `flips`, positive is worse.

    `drop` is the loss of the task's first metric, `flips` the share of rows where a prediction changed,
    `calibration` the growth of the expected calibration error: signed, since probabilities that became more
    honest break no promise. `by_label` is the loss of recall of each label (of each kind of entity), and
    `by_length` that of the first metric in quarters of the rows by their tokens. `flipped` are the first of
    the rows that changed.
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
        task: its first metric decides.
        examples: the labelled rows.
        labels: names of the label indices.
        reference: the reference's scores, one array `(units, labels)` a row.
        scores: the model's.
        seed: of the bootstrap.
        lengths: tokens of each row; without them `by_length` is empty.
    """
    name, gold = task.METRICS[0], [task.targets(example, labels) for example in examples]
    before, after = metrics.predictions(reference), metrics.predictions(scores)
    changed = np.array([not np.array_equal(a, b) for a, b in zip(before, after, strict=True)], dtype=float)
    counts = hstack([metrics.counts(name, gold, rows, labels) for rows in (before, after)], format="csr")
    certainty = np.concatenate([metrics.calibration(gold, rows) for rows in (reference, scores)], axis=1)
    (members, first), (_, second) = (metrics.recalls(name, gold, rows, labels) for rows in (before, after))
    loss = partial(_loss, name=name)
    found = _bootstrap(
        [
            Figure("drop", counts, loss),
            Figure("flips", csr_array(changed[:, None]), lambda summed: summed / len(gold)),
            Figure("calibration", csr_array(certainty), _growth),
            Figure("by_label", hstack([first, second], format="csr"), _recall_loss, members),
            *(
                Figure("by_length", diags_array(inside.astype(float)) @ counts, loss, (bucket,))
                for bucket, inside in buckets(lengths or ()).items()
            ),
        ],
        seed,
    )
    return Comparison(
        metric=name,
        **{figure: found[figure, ""] for figure in ("drop", "flips", "calibration")},
        by_label={member: value for (figure, member), value in found.items() if figure == "by_label"},
        by_length={member: value for (figure, member), value in found.items() if figure == "by_length"},
        rows=len(gold),
        flipped=tuple(np.flatnonzero(changed)[:SHOWN_FLIPS].tolist()),
    )


def flips(
    task: Task,
    examples: Sequence[Example],
    labels: Sequence[str],
    reference: Sequence[Float32],
    scores: Sequence[Float32],
    rows: Sequence[int],
) -> list[dict[str, str]]:
    """Shows the units whose prediction changed: their text, true label, and the label before and after.

    Args:
        task: finds the units.
        examples: the labelled rows.
        labels: names of the label indices.
        reference: the reference's scores.
        scores: the model's.
        rows: which rows to look at; see `Comparison.flipped`.
    """
    found = []
    for row in rows:
        text, true = examples[row].text, task.targets(examples[row], labels)
        before, after = reference[row].argmax(axis=-1), scores[row].argmax(axis=-1)
        for unit in np.flatnonzero(before != after):
            start, end = task.units(text)[unit]
            names = {"true": true[unit], "before": before[unit], "after": after[unit]}
            found.append({"text": text[start:end], **{name: labels[index] for name, index in names.items()}})
    return found


def buckets(lengths: Sequence[int]) -> dict[str, npt.NDArray[np.bool_]]:
    """Cuts rows at the quartiles of their lengths.

    Args:
        lengths: tokens of each row.

    Returns:
        Names such as `"up to 19 tokens"` or `"20 to 27 tokens"` to the rows inside, `(rows,)`; fewer than four where
        quartiles are equal.
    """
    if not lengths:
        return {}
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="lower"))
    bucket = np.searchsorted(edges, lengths)
    starts = ["up to", *(f"{edge + 1} to" for edge in edges[:-1])]
    return {f"{start} {edge} tokens": bucket == at for at, (start, edge) in enumerate(zip(starts, edges, strict=True))}


def _loss(summed: Counts, name: str) -> Counts:
    return -_change(metrics.ratio(name, _models(summed)))


def _growth(summed: Counts) -> Counts:
    return _change(metrics.calibration_error(_models(summed)))


def _recall_loss(summed: Counts) -> Counts:
    right, true = np.split(_models(summed), 2, axis=-1)
    return -_change(right / np.maximum(true, 1))


def _models(summed: Counts) -> Counts:
    """Parts the sums of the two models, which stand side by side: `(2, samples, columns)`."""
    return np.stack(np.split(summed, 2, axis=-1))


def _change(models: Counts) -> Counts:
    """Takes `(2, ...)`: before and after."""
    return cast(Counts, models[1] - models[0])


def _bootstrap(figures: Sequence[Figure], seed: int) -> dict[tuple[str, str], Metric]:
    """Draws rows once for all figures; returns the value of each by its name and member.

    An interval always holds its value: the calibration error of a draw lies above that of the rows it is drawn
    from, in both models by nearly as much.
    """
    table = hstack([figure.table for figure in figures], format="csr")
    ends = np.cumsum([figure.table.shape[1] for figure in figures])[:-1]
    samples: list[list[Counts]] = [[] for _ in figures]
    for summed in chain([table.sum(axis=0)[None]], bootstrap.chunks(table, seed)):  # the rows as they are come first
        for figure, piece, results in zip(figures, np.split(summed, ends, axis=1), samples, strict=True):
            results.append(figure.function(piece).reshape(len(piece), -1) + 0.0)  # no negative zero
    values = {}
    for figure, results in zip(figures, samples, strict=True):
        for member, (value, *resampled) in zip(figure.members, np.concatenate(results).T.tolist(), strict=True):
            low, high = bootstrap.interval(np.array(resampled))
            values[figure.name, member] = Metric(value=value, low=min(low, value), high=max(high, value))
    return values
