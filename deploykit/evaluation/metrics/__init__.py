"""Metrics by name, as tasks name them, with 95 % bootstrap intervals over rows.

A metric computes its value with a library. For its interval it returns a function of weights: how often each row was
drawn. Most metrics are ratios of counts, which are summed over the drawn rows: the library's value, a thousand times
faster (a test compares them).
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

Weights = npt.NDArray[Any]  # how often each row was drawn, (samples, rows)
Values = npt.NDArray[np.float64]  # one for each sample, (samples,) or (samples, members)
Statistic = Callable[[Weights], Values]


@dataclass(frozen=True)
class Outcomes:
    """What is true of some rows, and what a model predicts for them.

    `examples` are the rows themselves, for metrics that group them.
    """

    task: Task
    spec: Spec
    gold: Sequence[Any]
    predictions: Sequence[Prediction]
    examples: Sequence[Example] = ()

    @classmethod
    def of(cls, task: Task, spec: Spec, examples: Sequence[Example], predictions: Sequence[Prediction]) -> "Outcomes":
        """Pairs examples with predictions, as many of each."""
        if len(examples) != len(predictions):
            raise ValueError(f"{len(examples)} examples and {len(predictions)} predictions, expected as many of each")
        return cls(task, spec, [task.gold(example, spec) for example in examples], predictions, examples)

    def __len__(self) -> int:
        return len(self.gold)

    @cached_property
    def decisions(self) -> list[Any]:
        """The decision of each prediction, which is compared with the gold."""
        return [self.task.decide(prediction, self.spec) for prediction in self.predictions]

    @cached_property
    def probabilities(self) -> list[Float32]:
        """The probabilities of each prediction, `(units, labels)`."""
        return [self.task.probabilities(prediction, self.spec) for prediction in self.predictions]


class Definition(Protocol):
    """A metric. `HIGHER` says whether a higher value is better."""

    HIGHER: bool

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric."""

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns a function that computes the metric of drawn rows."""


def load(name: str) -> Definition:
    """Returns a metric by name, for example `"accuracy"`; of a head, `"intent/accuracy"`."""
    from deploykit.evaluation.metrics.heads import OfHead
    from deploykit.evaluation.metrics.registry import METRICS

    head, _, own = name.rpartition("/")
    return OfHead(head, METRICS[own]) if head else METRICS[own]


def compute(names: Sequence[str], outcomes: Outcomes) -> dict[str, float]:
    """Computes metrics by name; those of a head need rows with its labels."""
    values = {name: load(name).value(outcomes) for name in names}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def with_intervals(names: Sequence[str], outcomes: Outcomes, seed: int) -> dict[str, Metric]:
    """Computes the named metrics, each with its 95 % bootstrap interval over rows."""
    intervals = {}
    for name, value in compute(names, outcomes).items():
        statistic = load(name).statistic(outcomes)
        samples = np.concatenate([statistic(weights) for weights in bootstrap.draw_weights(len(outcomes), seed)])
        low, high = bootstrap.interval(samples)
        intervals[name] = Metric(value=value, low=min(low, value), high=max(high, value))
    return intervals


def of_sums(table: Any, value: Callable[[Values], Values]) -> Statistic:
    """Returns the statistic of a metric that is a function of counts summed over rows.

    Args:
        table: the counts of each row, dense or sparse, `(rows, columns)`.
        value: of the sums, `(samples, columns)`.
    """
    return lambda weights: value(np.asarray(weights @ table))


def of_rows(value: Callable[[npt.NDArray[np.intp]], float]) -> Statistic:
    """Returns the statistic of a metric that is no function of sums, from one that computes it for drawn rows."""

    def statistic(weights: Weights) -> Values:
        places = np.arange(weights.shape[1])
        return np.array([value(np.repeat(places, drawn)) for drawn in weights])

    return statistic


def differences(name: str, before: Outcomes, after: Outcomes) -> Statistic:
    """Returns the statistic of the loss of a metric; positive values are worse."""
    metric = load(name)
    first, second = metric.statistic(before), metric.statistic(after)
    sign = 1.0 if metric.HIGHER else -1.0
    return lambda weights: sign * (first(weights) - second(weights))


__all__ = [
    "Definition",
    "Outcomes",
    "Statistic",
    "Values",
    "Weights",
    "compute",
    "differences",
    "load",
    "of_rows",
    "of_sums",
    "with_intervals",
]
