"""Metrics that count items: the single claims of a decision, such as a label, an entity or a relation.

The task lists the items of a decision as tuples that begin with a label. An item is right if the gold has the same.
"""

from typing import Any

import numpy as np
import seqeval.metrics
from scipy.sparse import coo_array

from deploykit.evaluation.metrics import Outcomes, Statistic, Values, statistic_of_sums


class MicroF1:
    """The F1 of all items together."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric from the counts of all rows."""
        return float(self.statistic(outcomes)(np.ones((1, len(outcomes))))[0])

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns a function that computes the metric of resampled rows from their right, true and predicted items."""
        labels, counts = count_items(outcomes)
        over_labels = counts @ np.repeat(np.eye(3), len(labels), axis=0)  # (rows, 3): right, true, predicted
        return statistic_of_sums(over_labels, lambda sums: 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1))


class MacroF1:
    """The unweighted mean of the labels' F1, over the labels that are true or predicted anywhere."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric from the counts of all rows."""
        return float(self.statistic(outcomes)(np.ones((1, len(outcomes))))[0])

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Computes the metric from the right, true and predicted items of each label in drawn rows."""

        def value(sums: Values) -> Values:
            right, true, predicted = np.split(sums, 3, axis=1)
            occurring = (true + predicted > 0).sum(axis=1)
            mean: Values = (2 * right / np.maximum(true + predicted, 1)).sum(axis=1) / np.maximum(occurring, 1)
            return mean

        return statistic_of_sums(count_items(outcomes)[1], value)


class SpanF1:
    """The F1 of all spans together, for tasks that also predict something else, such as relations."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric from the counts of all rows."""
        return float(self.statistic(outcomes)(np.ones((1, len(outcomes))))[0])

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns a function that computes the metric of resampled rows from their right, true and predicted items."""
        true, predicted = (
            [set(outcomes.task.spans(row, outcomes.spec)) for row in rows]
            for rows in (outcomes.gold, outcomes.decisions)
        )
        counts = [
            (len(gold & decision), len(gold), len(decision)) for gold, decision in zip(true, predicted, strict=True)
        ]
        return statistic_of_sums(np.array(counts), lambda sums: 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1))


class EntityF1(MicroF1):
    """The micro-averaged F1 of entities, as in CoNLL: an entity is right if its start, end and label are."""

    def value(self, outcomes: Outcomes) -> float:
        """Computes the metric with seqeval."""
        labels = outcomes.spec.labels
        true, predicted = (
            [[labels[index] for index in row] for row in rows] for rows in (outcomes.gold, outcomes.decisions)
        )
        return float(seqeval.metrics.f1_score(true, predicted, average="micro", zero_division=0))


def count_items(outcomes: Outcomes) -> tuple[tuple[str, ...], Any]:
    """Counts for each row and label how many items are right, true and predicted.

    Returns:
        The labels of items, and the counts as a sparse array, `(rows, 3 * labels)`: first the counts of right items of
        each label, then those of true items, then those of predicted items.
    """
    task, spec = outcomes.task, outcomes.spec
    labels = task.item_labels(spec)
    index_of = {label: index for index, label in enumerate(labels)}
    cells = []  # (row, column) of each counted item
    for row, (gold, decision) in enumerate(zip(outcomes.gold, outcomes.decisions, strict=True)):
        true, predicted = set(task.items(gold, spec)), set(task.items(decision, spec))
        for block, items in enumerate((true & predicted, true, predicted)):
            cells += [(row, block * len(labels) + index_of[item[0]]) for item in items]
    rows_and_columns = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    shape = (len(outcomes), 3 * len(labels))
    return labels, coo_array((np.ones(len(cells)), tuple(rows_and_columns)), shape=shape).tocsr()


def recall_losses(before: Outcomes, after: Outcomes) -> tuple[tuple[str, ...], Statistic]:
    """Returns the labels that are true anywhere, and the statistic of their losses of recall, `(samples, labels)`."""
    labels, counts_before = count_items(before)
    counts_after = count_items(after)[1]
    true = np.asarray(counts_before.sum(axis=0))[len(labels) : 2 * len(labels)]
    occurring = np.flatnonzero(true)
    columns = np.concatenate([occurring, len(labels) + occurring])  # their right items, then their true items
    recall_before, recall_after = (
        statistic_of_sums(counts[:, columns], _recall) for counts in (counts_before, counts_after)
    )
    return tuple(labels[index] for index in occurring), lambda weights: recall_before(weights) - recall_after(weights)


def _recall(sums: Values) -> Values:
    """Returns each label's recall, `(samples, labels)`, from its right and its true items, `(samples, 2 * labels)`."""
    right, true = np.split(sums, 2, axis=1)
    return right / np.maximum(true, 1)


def per_label(outcomes: Outcomes) -> dict[str, dict[str, float]]:
    """Returns precision, recall, F1 and support of each label that is true or predicted anywhere."""
    labels, counts = count_items(outcomes)
    figures = {}
    for label, right, true, predicted in zip(labels, *np.split(np.asarray(counts.sum(axis=0)), 3), strict=True):
        if true + predicted:
            figures[label] = {
                "precision": float(right / max(predicted, 1)),
                "recall": float(right / max(true, 1)),
                "f1-score": float(2 * right / (true + predicted)),
                "support": float(true),
            }
    return figures
