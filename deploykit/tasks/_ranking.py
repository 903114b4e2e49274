"""Ranking with tasks on pairs: the first text is a query, the second a candidate that has a relevance to it."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from deploykit.errors import DataError
from deploykit.tasks import Example, Prediction

METRICS = ("mrr", "ndcg_at_10")
NEGATIVE_POSITIVE_PAIRS = {("0", "1"), ("no", "yes"), ("false", "true")}  # of labels, in lower case
NEGATED_LABEL = re.compile(r"(?:not|non)[ _-]?(.+)")  # its group is the positive label


class Relevance(NamedTuple):
    """Three functions that return how relevant a candidate is; higher is more relevant.

    Attributes:
        of_prediction: the predicted relevance, from a prediction of the task.
        of_gold: the true relevance, from a gold decision; metrics count a candidate above 0 as relevant.
        of_answer: the predicted relevance, from an answer of the service.
    """

    of_prediction: Callable[[Prediction], float]
    of_gold: Callable[[Any], float]
    of_answer: Callable[[Any], float]


def positive_label(labels: Sequence[str], chosen: str | None) -> str | None:
    """Returns the label whose probability is the relevance of a candidate.

    Args:
        labels: of the model.
        chosen: the label that the recipe names; None: the positive one of two labels such as `0` and `1`, `no` and
            `yes`, `false` and `true`, or `not_x` and `x`.

    Returns:
        The label, or None if the recipe names none and the labels are no such pair.
    """
    if chosen is not None or len(labels) != 2:
        return chosen
    first, second = labels
    for negative, positive in ((first, second), (second, first)):
        pair = negative.lower(), positive.lower()
        negated = NEGATED_LABEL.fullmatch(pair[0])
        if pair in NEGATIVE_POSITIVE_PAIRS or (negated and negated[1] == pair[1]):
            return positive
    return None


def check_positive_label(examples: Sequence[Example], chosen: str | None) -> None:
    """Raises DataError if no training row has the chosen label."""
    labels = sorted({example.target for example in examples})
    if chosen is not None and chosen not in labels:
        raise DataError(f"no training row has the positive_label {chosen!r}. The labels are: {', '.join(labels)}.")


def ranking_metrics(examples: Sequence[Example]) -> tuple[str, ...]:
    """Lists the metrics of rankings, if most rows are pairs whose first text, the query, other rows have, too."""
    if any(example.input.text_pair is None for example in examples):
        return ()
    rows_by_query = Counter(example.input.text for example in examples)
    grouped_rows = sum(count for count in rows_by_query.values() if count > 1)
    return METRICS if 2 * grouped_rows > len(examples) else ()
