"""Coverage and accuracy of a classifier that abstains where the probability of its label is below a threshold."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from deploykit.artifact import Metric
from deploykit.evaluation.metrics import Outcomes
from deploykit.tasks import Float32

CURVE_COVERAGES_PERCENT = (100, 95, 90, 80, 70, 50)  # answered rows at the points of the curve


def measure(outcomes: Outcomes) -> dict[str, Any]:
    """Returns what the report shows of abstention.

    Intervals are Wilson's (1927): those of a bootstrap have no width where all answers are right.

    Returns:
        `chosen`: the point at the threshold that the task's options set; None if they set none.
        `curve`: the points at the thresholds that answer `CURVE_COVERAGES_PERCENT` of these rows.
        Each point has `threshold`, `coverage` and `accuracy`; `accuracy` is None if no row is answered.
    """
    observed = outcomes.task.observe(outcomes.predictions, outcomes.spec)
    threshold = outcomes.spec.options.abstain_below
    confidences, right = observed.confidences, observed.labels == np.concatenate(outcomes.gold)
    descending = np.sort(confidences)[::-1]
    last_answered = [math.ceil(percent * len(descending) / 100) - 1 for percent in CURVE_COVERAGES_PERCENT]
    return {
        "chosen": None if threshold is None else _measure_point(confidences, right, threshold),
        "curve": [_measure_point(confidences, right, float(descending[index])) for index in last_answered],
    }


def _measure_point(confidences: Float32, right: npt.NDArray[np.bool_], threshold: float) -> dict[str, Any]:
    """Measures coverage and accuracy at a threshold.

    Args:
        confidences: probability of the label of each row, `(rows,)`.
        right: whether that label is true, `(rows,)`.
        threshold: of the probability; rows from it on are answered.
    """
    answered = confidences >= threshold
    count = int(answered.sum())
    return {
        "threshold": threshold,
        "coverage": _share(count, len(confidences)),
        "accuracy": _share(int(right[answered].sum()), count) if count else None,
    }


def _share(count: int, total: int) -> dict[str, float]:
    """Returns a share with its 95 % interval, as JSON values."""
    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return Metric(value=count / total, low=low, high=high).model_dump()
