"""Metrics of a task that consists of others: those of each head on the rows with its labels, and their mean."""

import numpy as np

from deploykit.evaluation import metrics
from deploykit.evaluation.metrics import Definition, Outcomes, Statistic, Values, Weights


class MeanOfHeads:
    """The mean of the first metrics of the heads that have labelled rows."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric of each head on the rows with its labels."""
        return float(np.nanmean([metric.value(outcomes) for metric in _first_metrics(outcomes)]))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns the mean of the heads' metrics of drawn rows."""
        statistics = [
            metric.statistic(outcomes) for metric in _first_metrics(outcomes) if not np.isnan(metric.value(outcomes))
        ]
        return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


class OfHead:
    """A metric of one head, on the rows with its labels."""

    def __init__(self, head: str, metric: Definition) -> None:
        self._head, self._metric, self.HIGHER = head, metric, metric.HIGHER

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric; NaN if no row has labels of the head."""
        of_head, row_indices = _head_outcomes(outcomes, self._head)
        return self._metric.value(of_head) if row_indices else float("nan")

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns the metric of the drawn rows that have labels of the head; without any, that of all such rows."""
        of_head, row_indices = _head_outcomes(outcomes, self._head)
        statistic = self._metric.statistic(of_head)

        whole = self._metric.value(of_head)

        def of_drawn(weights: Weights) -> Values:
            drawn = weights[:, row_indices]
            values: Values = np.where(drawn.any(axis=1), statistic(drawn), whole)
            return values

        return of_drawn


def _first_metrics(outcomes: Outcomes) -> list[Definition]:
    """Returns the first metric of each head."""
    tasks = outcomes.task.subtasks(outcomes.spec)
    return [metrics.load(f"{name}/{task.METRICS[0]}") for name, (task, _) in tasks.items()]


def _head_outcomes(outcomes: Outcomes, head: str) -> tuple[Outcomes, list[int]]:
    """Returns the outcomes of a head, and the indices of their rows."""
    task, spec = outcomes.task.subtasks(outcomes.spec)[head]
    row_indices = [row for row, gold in enumerate(outcomes.gold) if head in gold]
    gold, predictions = ([values[row][head] for row in row_indices] for values in (outcomes.gold, outcomes.predictions))
    return Outcomes(task, spec, gold, predictions), row_indices
