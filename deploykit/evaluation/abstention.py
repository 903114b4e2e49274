"""How many rows a classifier answers if it abstains below a probability, and how many of these are right."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from deploykit.artifact import Metric
from deploykit.evaluation.metrics import Outcomes
from deploykit.tasks import Float32

COVERAGES_PERCENT = (100, 95, 90, 80, 70, 50)


def measure(outcomes: Outcomes) -> dict[str, Any]:
    """Returns what the report shows of abstention.

    Intervals are Wilson's (1927): those of a bootstrap have no width where all answers are right.

    Returns:
        `chosen`, coverage and accuracy at the threshold of the options, None without one, and `curve`, the same at the
        thresholds that answer given shares of these rows. Each has `threshold`, `coverage` and `accuracy`, which is
        None if no row is answered.
    """
    observed, threshold = (
        outcomes.task.observe(outcomes.predictions, outcomes.spec),
        outcomes.spec.options.abstain_below,
    )
    confidences, right = observed.confidences, observed.labels == np.concatenate(outcomes.gold)
    ranked = np.sort(confidences)[::-1]
    ranks = [math.ceil(percent * len(ranked) / 100) - 1 for percent in COVERAGES_PERCENT]
    return {
        "chosen": None if threshold is None else _measure(confidences, right, threshold),
        "curve": [_measure(confidences, right, float(ranked[rank])) for rank in ranks],
    }


def _measure(confidences: Float32, right: npt.NDArray[np.bool_], threshold: float) -> dict[str, Any]:
    answered = confidences >= threshold
    count = int(answered.sum())
    return {
        "threshold": threshold,
        "coverage": _share(count, len(confidences)),
        "accuracy": _share(int(right[answered].sum()), count) if count else None,
    }


def _share(part: int, whole: int) -> dict[str, float]:
    low, high = binomtest(part, whole).proportion_ci(method="wilson")
    return Metric(value=part / whole, low=low, high=high).model_dump()
