"""Whether one model is as good as another on the same rows: drop, flips, and the gates on them."""

from collections.abc import Sequence

import numpy as np

from deploykit.artifact import Metric, Record
from deploykit.evaluation import metrics
from deploykit.recipe import GateSection
from deploykit.tasks import Example, Float32, Task

SHOWN_FLIPS = 50


class Comparison(Record):
    """A model against a reference on one split.

    `drop` is the loss of the task's first metric (positive: worse) with its paired bootstrap interval,
    `flips` the share of rows where a prediction changed, `flipped` the first of those rows.
    """

    metric: str
    drop: Metric
    flips: float
    rows: int
    flipped: tuple[int, ...]


class Verdict(Record):
    """One gate: its limit, what was found, and whether it holds."""

    gate: str
    limit: float
    found: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.gate} is {self.found:.4f}, allowed {self.limit:.4f}"


def compare(
    task: Task,
    examples: Sequence[Example],
    labels: Sequence[str],
    reference: Sequence[Float32],
    scores: Sequence[Float32],
    seed: int,
) -> Comparison:
    """Compares two models row by row.

    Args:
        task: its first metric decides.
        examples: the labelled rows.
        labels: names of the label indices.
        reference: the reference's scores, one array `(units, labels)` a row.
        scores: the model's.
        seed: of the bootstrap.
    """
    name = task.METRICS[0]
    gold = [task.targets(example, labels) for example in examples]
    before, after = metrics.predictions(reference), metrics.predictions(scores)
    both = np.stack([metrics.counts(name, gold, rows, labels) for rows in (before, after)], axis=1)
    total, sampled = metrics.ratio(name, both.sum(axis=0)), metrics.ratio(name, metrics.resampled(both, seed))
    low, high = np.quantile(sampled[:, 0] - sampled[:, 1], [0.025, 0.975])
    flipped = [index for index, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a, b)]
    return Comparison(
        metric=name,
        drop=Metric(value=float(total[0] - total[1]), low=float(low), high=float(high)),
        flips=len(flipped) / len(gold),
        rows=len(gold),
        flipped=tuple(flipped[:SHOWN_FLIPS]),
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


def verdicts(gates: GateSection, comparison: Comparison) -> tuple[Verdict, ...]:
    """Holds a comparison against the gates that the recipe sets."""
    found = [("max_drop", gates.max_drop, comparison.drop.value), ("max_flips", gates.max_flips, comparison.flips)]
    return tuple(
        Verdict(gate=gate, limit=limit, found=value, passed=value <= limit + 1e-9)
        for gate, limit, value in found
        if limit is not None
    )


def broken(gates: GateSection, comparison: Comparison) -> str:
    """Names the gates that are broken, with their numbers; empty where all hold."""
    return "; ".join(str(verdict) for verdict in verdicts(gates, comparison) if not verdict.passed)
