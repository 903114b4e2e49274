"""Metrics of a task that consists of others: those of each head on the rows with its labels, and their mean."""

import numpy as np

from deploykit.evaluation import metrics
from deploykit.evaluation.metrics import Definition, Outcomes, Statistic, Values, Weights


class MeanOfHeads:
    """The mean of the first metrics of the heads."""

    HIGHER = True

    def value(self, rows: Outcomes) -> float:
        """Computes the metric of each head on the rows with its labels."""
        return float(np.nanmean([metric.value(rows) for metric in _first(rows)]))

    def statistic(self, rows: Outcomes) -> Statistic:
        """Returns the mean of the heads' metrics of drawn rows."""
        statistics = [metric.statistic(rows) for metric in _first(rows) if not np.isnan(metric.value(rows))]
        return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


class OfHead:
    """A metric of one head, on the rows with its labels."""

    def __init__(self, head: str, metric: Definition) -> None:
        self._head, self._metric, self.HIGHER = head, metric, metric.HIGHER

    def value(self, rows: Outcomes) -> float:
        """Computes the metric; NaN if no row has labels of the head."""
        part, places = _part(rows, self._head)
        return self._metric.value(part) if places else float("nan")

    def statistic(self, rows: Outcomes) -> Statistic:
        """Returns the metric of those of the drawn rows that have labels of the head."""
        part, places = _part(rows, self._head)
        statistic = self._metric.statistic(part)

        def of_part(weights: Weights) -> Values:
            return statistic(weights[:, places])

        return of_part


def _first(rows: Outcomes) -> list[Definition]:
    """Returns the first metric of each head."""
    tasks = rows.task.heads_of(rows.spec)
    return [metrics.load(f"{name}/{task.METRICS[0]}") for name, (task, _) in tasks.items()]


def _part(rows: Outcomes, head: str) -> tuple[Outcomes, list[int]]:
    """Returns the outcomes of a head, and the places of their rows."""
    task, spec = rows.task.heads_of(rows.spec)[head]
    places = [row for row, gold in enumerate(rows.gold) if head in gold]
    gold, predictions = ([side[row][head] for row in places] for side in (rows.gold, rows.predictions))
    return Outcomes(task, spec, gold, predictions), places
