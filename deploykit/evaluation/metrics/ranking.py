"""Metrics for rankings: rows with the same first text are the candidates of one query, sorted by predicted relevance.

The true relevance of a row is 1 for the positive label and 0 for others, or the number that the row has. A candidate is
relevant if that is above 0. A query counts if it has at least two candidates, and at least one of them is relevant.

A metric is a mean over the queries that count, and so is each value of its bootstrap. There, a query with all of its
candidates counts as often as its first row was drawn, so that the interval is one over queries.
"""

import numpy as np
import numpy.typing as npt
from sklearn.metrics import ndcg_score

from deploykit.evaluation.metrics import Outcomes, Statistic, Values, Weights
from deploykit.tasks._ranking import Relevance

TOP_CANDIDATES = 10  # that the discounted gain counts
Relevances = npt.NDArray[np.float64]  # of the candidates of a query, in the order of the rows, (candidates,)


class MeanReciprocalRank:
    """The mean of 1 / the rank of the first relevant candidate; of equal predictions, irrelevant ones rank first."""

    HIGHER_IS_BETTER = True

    def value(self, outcomes: Outcomes) -> float:
        """Averages the metric over queries; NaN if no query counts."""
        values = self._query_values(outcomes)[1]
        return float(values.mean()) if len(values) else float("nan")

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Averages the metric over drawn queries; for a sample without any, over all queries."""
        first_rows, values = self._query_values(outcomes)

        def mean(weights: Weights) -> Values:
            drawn = weights[:, first_rows]
            count = drawn.sum(axis=1)
            return np.asarray(np.where(count > 0, drawn @ values / np.maximum(count, 1), values.mean()))

        return mean

    def query_value(self, true: Relevances, predicted: Relevances) -> float:
        """Computes the metric for the candidates of one query."""
        relevant = true > 0
        ranked_before = (predicted[~relevant] >= predicted[relevant].max()).sum()
        return float(1 / (1 + ranked_before))

    def _query_values(self, outcomes: Outcomes) -> tuple[npt.NDArray[np.intp], Values]:
        """Returns, for each query that counts, the index of its first row, and its value, `(queries,)` each."""
        relevance: Relevance | None = outcomes.task.relevance(outcomes.spec)
        if relevance is None:
            raise ValueError(f"none of the labels {', '.join(outcomes.spec.labels)} is the positive one")
        true = np.array([relevance.of_gold(gold) for gold in outcomes.gold])
        predicted = np.array([relevance.of_prediction(prediction) for prediction in outcomes.predictions])
        queries = np.unique([example.input.text for example in outcomes.examples], return_inverse=True)[1]
        order = np.argsort(queries, kind="stable")
        rows_of_queries = np.split(order, np.flatnonzero(np.diff(queries[order])) + 1)
        counted = [rows for rows in rows_of_queries if len(rows) > 1 and true[rows].max() > 0]
        values = [self.query_value(true[rows], predicted[rows]) for rows in counted]
        return np.array([rows[0] for rows in counted], dtype=np.intp), np.array(values, dtype=np.float64)


class DiscountedGain(MeanReciprocalRank):
    """The normalized discounted cumulative gain of the first ten candidates (Järvelin and Kekäläinen, 2002).

    The gain of a candidate is its relevance, or 0 if that is negative. Candidates with equal predictions share their
    gains equally.
    """

    def query_value(self, true: Relevances, predicted: Relevances) -> float:
        """Computes the metric with scikit-learn."""
        return float(ndcg_score([np.maximum(true, 0)], [predicted], k=TOP_CANDIDATES))
