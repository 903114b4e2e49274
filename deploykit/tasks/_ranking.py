"""Ranking by tasks on pairs: the first text is a query, and the second a candidate, which has a relevance."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from deploykit.errors import DataError
from deploykit.tasks import Example, Prediction

METRICS = ("mrr", "ndcg_at_10")
OPPOSITES = {("0", "1"), ("no", "yes"), ("false", "true")}
NEGATION = re.compile(r"(?:not|non)[ _-]?(.+)")


class Relevance(NamedTuple):
    """Functions that return how relevant a candidate is: by a prediction, by what is true, by an answer.

    What is true above 0 is relevant.
    """

    of_prediction: Callable[[Prediction], float]
    of_gold: Callable[[Any], float]
    of_answer: Callable[[Any], float]


def positive_label(labels: Sequence[str], chosen: str | None) -> str | None:
    """Returns the label whose probability is a candidate's score.

    Args:
        labels: of the model.
        chosen: the label that the recipe names; None: of two labels such as `0` and `1`, `no` and `yes`, `false` and
            `true`, `not_x` and `x`, the one that affirms.

    Returns:
        The label, or None if the recipe must name it.
    """
    if chosen is not None or len(labels) != 2:
        return chosen
    first, second = labels
    for negative, positive in ((first, second), (second, first)):
        pair = negative.lower(), positive.lower()
        negated = NEGATION.fullmatch(pair[0])
        if pair in OPPOSITES or (negated and negated[1] == pair[1]):
            return positive
    return None


def require_label(examples: Sequence[Example], chosen: str | None) -> None:
    """Raises DataError if the chosen label is that of no training row."""
    labels = sorted({example.target for example in examples})
    if chosen is not None and chosen not in labels:
        raise DataError(f"no training row has the positive_label {chosen!r}. The labels are: {', '.join(labels)}.")


def metrics_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """Lists the metrics of rankings if most rows share their first text with others: candidates of one query."""
    if any(example.input.text_pair is None for example in examples):
        return ()
    counts = Counter(example.input.text for example in examples)
    in_groups = sum(count for count in counts.values() if count > 1)
    return METRICS if 2 * in_groups > len(examples) else ()
