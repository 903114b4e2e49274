"""Metrics of rankings: rows with the same first text are the candidates of one query, sorted by predicted relevance.

Only queries with at least two candidates count, of which at least one is relevant: a relevance above 0, which is 1 for
the positive label, or the number of a row. A metric is a mean over queries. So is each value of its bootstrap: a query
is drawn, with all of its candidates, as often as its first row is drawn among all rows, which makes the interval one
over queries.
"""

import numpy as np
import numpy.typing as npt
from sklearn.metrics import ndcg_score

from deploykit.evaluation.metrics import Outcomes, Statistic, Values, Weights
from deploykit.tasks._ranking import Relevance

DEPTH = 10  # candidates at the top that the discounted gain counts
Relevances = npt.NDArray[np.float64]  # (candidates,) of a query, in the order of the rows


class MeanReciprocalRank:
    """The mean of 1 / the rank of the first relevant candidate; irrelevant ones of the same score come before it."""

    HIGHER = True

    def value(self, outcomes: Outcomes) -> float:
        """Averages it over queries; NaN if none counts."""
        values = self._values(outcomes)[1]
        return float(values.mean()) if len(values) else float("nan")

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Averages it over drawn queries; where none is drawn, over all of them."""
        first_rows, values = self._values(outcomes)

        def mean(weights: Weights) -> Values:
            drawn = weights[:, first_rows]
            count = drawn.sum(axis=1)
            return np.asarray(np.where(count > 0, drawn @ values / np.maximum(count, 1), values.mean()))

        return mean

    def of_query(self, true: Relevances, predicted: Relevances) -> float:
        """Computes it for the candidates of a query."""
        relevant = true > 0
        return float(1 / (1 + (predicted[~relevant] >= predicted[relevant].max()).sum()))

    def _values(self, outcomes: Outcomes) -> tuple[npt.NDArray[np.intp], Values]:
        """Returns the first row of each query that counts, and its value."""
        relevance: Relevance | None = outcomes.task.relevance(outcomes.spec)
        if relevance is None:
            raise ValueError(f"none of the labels {', '.join(outcomes.spec.labels)} is the positive one")
        true = np.array([relevance.of_gold(gold) for gold in outcomes.gold])
        predicted = np.array([relevance.of_prediction(prediction) for prediction in outcomes.predictions])
        queries = np.unique([example.input.text for example in outcomes.examples], return_inverse=True)[1]
        order = np.argsort(queries, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(queries[order])) + 1)
        counted = [part for part in parts if len(part) > 1 and true[part].max() > 0]
        values = [self.of_query(true[part], predicted[part]) for part in counted]
        return np.array([part[0] for part in counted], dtype=np.intp), np.array(values, dtype=np.float64)


class DiscountedGain(MeanReciprocalRank):
    """The normalized discounted cumulative gain of the first ten candidates (Järvelin and Kekäläinen, 2002).

    The gain of a candidate is its relevance, or 0 if that is negative; candidates of the same score share their gains.
    """

    def of_query(self, true: Relevances, predicted: Relevances) -> float:
        """Computes it with scikit-learn."""
        return float(ndcg_score([np.maximum(true, 0)], [predicted], k=DEPTH))
