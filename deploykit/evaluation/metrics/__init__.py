"""Metrics by name, as tasks name them, with 95 % bootstrap intervals over rows.

A metric computes its value with a library. For its interval it returns a statistic: a function of weights, which say
how often the bootstrap drew each row. Most metrics are ratios of counts that can be summed over rows. From such sums a
statistic computes what the library would for the drawn rows, a thousand times faster. A test compares the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap
from deploykit.tasks import Example, Float32, Prediction, Spec, Task

Weights = npt.NDArray[Any]  # how often each row was drawn in each sample of a bootstrap, (samples, rows)
Values = npt.NDArray[np.float64]  # (samples,) or, for several figures at once, (samples, figures)
Statistic = Callable[[Weights], Values]


@dataclass(frozen=True)
class Outcomes:
    """What is true of some rows (`gold`), and what a model predicts for them.

    `examples` are the rows themselves, for metrics that group them by their input.
    """

    task: Task
    spec: Spec
    gold: Sequence[Any]
    predictions: Sequence[Prediction]
    examples: Sequence[Example] = ()

    @classmethod
    def of(cls, task: Task, spec: Spec, examples: Sequence[Example], predictions: Sequence[Prediction]) -> "Outcomes":
        """Pairs examples with their predictions.

        Raises:
            ValueError: there is not one prediction for each example.
        """
        if len(examples) != len(predictions):
            raise ValueError(f"{len(examples)} examples and {len(predictions)} predictions, expected as many of each")
        return cls(task, spec, [task.gold(example, spec) for example in examples], predictions, examples)

    def __len__(self) -> int:
        return len(self.gold)

    @cached_property
    def decisions(self) -> list[Any]:
        """The task's decision for each row, such as a label; metrics compare it with the gold."""
        return [self.task.decide(prediction, self.spec) for prediction in self.predictions]

    @cached_property
    def probabilities(self) -> list[Float32]:
        """The probabilities for each row, `(units, labels)` each."""
        return [self.task.probabilities(prediction, self.spec) for prediction in self.predictions]


class Definition(Protocol):
    """What a metric provides."""

    HIGHER_IS_BETTER: bool

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric on all rows."""

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns a function that computes the metric on drawn rows."""


def load(name: str) -> Definition:
    """Returns a metric by name, for example `"accuracy"`, or `"intent/accuracy"` for that of the head `intent`."""
    from deploykit.evaluation.metrics.heads import HeadMetric
    from deploykit.evaluation.metrics.registry import METRICS

    head, _, name_in_head = name.rpartition("/")
    return HeadMetric(head, METRICS[name_in_head]) if head else METRICS[name]


def compute(names: Sequence[str], outcomes: Outcomes) -> dict[str, float]:
    """Computes metrics by name; leaves out those that are undefined, such as a head's without rows with its labels."""
    values = {name: load(name).value(outcomes) for name in names}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def compute_with_intervals(names: Sequence[str], outcomes: Outcomes, seed: int) -> dict[str, Metric]:
    """Computes the named metrics, each with its 95 % bootstrap interval over rows."""
    intervals = {}
    for name, value in compute(names, outcomes).items():
        statistic = load(name).statistic(outcomes)
        samples = np.concatenate([statistic(weights) for weights in bootstrap.draw_weights(len(outcomes), seed)])
        low, high = bootstrap.interval(samples)
        intervals[name] = Metric(value=value, low=min(low, value), high=max(high, value))
    return intervals


def statistic_of_sums(counts: Any, compute: Callable[[Values], Values]) -> Statistic:
    """Returns the statistic of a metric that follows from counts summed over rows.

    Args:
        counts: the counts of each row, dense or sparse, `(rows, columns)`.
        compute: maps their sums over drawn rows, `(samples, columns)`, to the metric, `(samples,)`.
    """
    return lambda weights: compute(np.asarray(weights @ counts))


def statistic_of_rows(compute: Callable[[npt.NDArray[np.intp]], float]) -> Statistic:
    """Returns the statistic of a metric that does not follow from sums, such as a rank correlation.

    Args:
        compute: maps the indices of drawn rows, `(drawn,)`, to the metric; a row may be drawn several times.
    """

    def statistic(weights: Weights) -> Values:
        row_indices = np.arange(weights.shape[1])
        return np.array([compute(np.repeat(row_indices, counts)) for counts in weights])

    return statistic


def loss(name: str, before: Outcomes, after: Outcomes) -> Statistic:
    """Returns the statistic of how much worse a metric became; positive values are worse."""
    metric = load(name)
    statistic_before, statistic_after = metric.statistic(before), metric.statistic(after)
    sign = 1.0 if metric.HIGHER_IS_BETTER else -1.0
    return lambda weights: sign * (statistic_before(weights) - statistic_after(weights))


__all__ = [
    "Definition",
    "Outcomes",
    "Statistic",
    "Values",
    "Weights",
    "compute",
    "compute_with_intervals",
    "load",
    "loss",
    "statistic_of_rows",
    "statistic_of_sums",
]
