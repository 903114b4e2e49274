"""Metrics of items: what a decision claims, each with a label, such as a label, an entity, or a relation.

An item is right if it is among those of the gold. The task lists the items of a decision as tuples that begin with
their label.
"""

from typing import Any

import numpy as np
import seqeval.metrics
from scipy.sparse import coo_array

from deploykit.evaluation.metrics import Outcomes, Statistic, Values, of_sums


class MicroF1:
    """The F1 of all items together."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes it from the counts of all rows."""
        return float(self.statistic(outcomes)(np.ones((1, len(outcomes))))[0])

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns 2 right / (true + predicted) of drawn rows."""
        names, table = count(outcomes)
        summed = table @ np.repeat(np.eye(3), len(names), axis=0)
        return of_sums(summed, lambda sums: 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1))


class MacroF1:
    """The F1 averaged over the labels that are true or predicted somewhere, each counting the same."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes it from the counts of all rows."""
        return float(self.statistic(outcomes)(np.ones((1, len(outcomes))))[0])

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns the mean over labels of 2 right / (true + predicted) of drawn rows."""

        def value(sums: Values) -> Values:
            right, true, predicted = np.split(sums, 3, axis=1)
            occurring = (true + predicted > 0).sum(axis=1)
            mean: Values = (2 * right / np.maximum(true + predicted, 1)).sum(axis=1) / np.maximum(occurring, 1)
            return mean

        return of_sums(count(outcomes)[1], value)


class SpanF1:
    """The F1 of all spans together, of tasks that predict more than spans."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Computes it from the counts of all rows."""
        return float(self.statistic(outcomes)(np.ones((1, len(outcomes))))[0])

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Returns 2 right / (true + predicted) of drawn rows."""
        sides = (
            [set(outcomes.task.spans(row, outcomes.spec)) for row in side]
            for side in (outcomes.gold, outcomes.decisions)
        )
        counts = [(len(true & guess), len(true), len(guess)) for true, guess in zip(*sides, strict=True)]
        return of_sums(np.array(counts), lambda sums: 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1))


class EntityF1(MicroF1):
    """The micro-averaged F1 of entities, as in CoNLL: an entity is right only if its ends and label are."""

    def value(self, outcomes: Outcomes) -> float:
        """Computes it with seqeval."""
        labels = outcomes.spec.labels
        tags = [[[labels[index] for index in row] for row in side] for side in (outcomes.gold, outcomes.decisions)]
        return float(seqeval.metrics.f1_score(*tags, average="micro", zero_division=0))


def count(outcomes: Outcomes) -> tuple[tuple[str, ...], Any]:
    """Counts for each row and label how many items are right, true and predicted.

    Returns:
        The labels of items, and the sparse counts `(rows, 3 * labels)`: right, true and predicted.
    """
    task, spec = outcomes.task, outcomes.spec
    names = task.item_labels(spec)
    place = {label: index for index, label in enumerate(names)}
    cells = []
    for row, sides in enumerate(zip(outcomes.gold, outcomes.decisions, strict=True)):
        true, guess = (set(task.items(side, spec)) for side in sides)
        for part, items in enumerate((true & guess, true, guess)):
            cells += [(row, part * len(names) + place[item[0]]) for item in items]
    places = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    table = coo_array((np.ones(places.shape[1]), tuple(places)), shape=(len(outcomes), 3 * len(names)))
    return names, table.tocsr()


def recalls(before: Outcomes, after: Outcomes) -> tuple[tuple[str, ...], Statistic]:
    """Returns the labels that are true somewhere, and a function to the loss of recall of each, `(samples, labels)`."""
    names, first = count(before)
    second = count(after)[1]
    true = np.asarray(first.sum(axis=0))[len(names) : 2 * len(names)]
    occurring = np.flatnonzero(true)
    columns = np.concatenate([occurring, len(names) + occurring])
    sides = [of_sums(table[:, columns], _recall) for table in (first, second)]
    return tuple(names[index] for index in occurring), lambda weights: sides[0](weights) - sides[1](weights)


def _recall(sums: Values) -> Values:
    right, true = np.split(sums, 2, axis=1)
    return right / np.maximum(true, 1)


def per_label(outcomes: Outcomes) -> dict[str, dict[str, float]]:
    """Returns precision, recall, F1 and support of each label that is true or predicted somewhere."""
    names, table = count(outcomes)
    figures = {}
    for label, right, true, guess in zip(names, *np.split(np.asarray(table.sum(axis=0)), 3), strict=True):
        if true + guess:
            figures[label] = {
                "precision": float(right / max(guess, 1)),
                "recall": float(right / max(true, 1)),
                "f1-score": float(2 * right / (true + guess)),
                "support": float(true),
            }
    return figures
