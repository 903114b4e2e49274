"""Metrics for a task with several heads: the metrics of one head on the rows with its labels, and their mean."""

import numpy as np

from deploykit.evaluation import metrics
from deploykit.evaluation.metrics import Definition, Outcomes, Statistic, Values, Weights


class MeanOfHeads:
    """The mean of the first metrics of the heads that have labelled rows."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Averages the heads' metrics, each on the rows with the head's labels."""
        return float(np.nanmean([metric.value(outcomes) for metric in _first_metrics(outcomes)]))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Averages the heads' metrics on drawn rows."""
        statistics = [
            metric.statistic(outcomes) for metric in _first_metrics(outcomes) if not np.isnan(metric.value(outcomes))
        ]
        return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


class HeadMetric:
    """A metric of one head, on the rows with its labels."""

    def __init__(self, head: str, metric: Definition) -> None:
        self._head, self._metric, self.HIGHER_IS_BETTER = head, metric, metric.HIGHER_IS_BETTER

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric; NaN if no row has labels of the head."""
        head_outcomes, row_indices = _head_outcomes(outcomes, self._head)
        return self._metric.value(head_outcomes) if row_indices else float("nan")

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric on those drawn rows that have labels of the head.

        A sample without such rows gets the metric on all such rows.
        """
        head_outcomes, row_indices = _head_outcomes(outcomes, self._head)
        statistic, value_of_all = self._metric.statistic(head_outcomes), self._metric.value(head_outcomes)

        def on_drawn_rows(weights: Weights) -> Values:
            head_weights = weights[:, row_indices]
            values: Values = np.where(head_weights.any(axis=1), statistic(head_weights), value_of_all)
            return values

        return on_drawn_rows


def _first_metrics(outcomes: Outcomes) -> list[Definition]:
    """Returns the first metric of each head's task."""
    tasks = outcomes.task.subtasks(outcomes.spec)
    return [metrics.load(f"{name}/{task.METRICS[0]}") for name, (task, _) in tasks.items()]


def _head_outcomes(outcomes: Outcomes, head: str) -> tuple[Outcomes, list[int]]:
    """Returns the outcomes of the rows with labels of a head, and the indices of these rows."""
    task, spec = outcomes.task.subtasks(outcomes.spec)[head]
    row_indices = [row for row, gold in enumerate(outcomes.gold) if head in gold]
    gold, predictions = ([values[row][head] for row in row_indices] for values in (outcomes.gold, outcomes.predictions))
    return Outcomes(task, spec, gold, predictions), row_indices
