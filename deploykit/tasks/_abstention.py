"""When a classifier abstains: the options, and the probability threshold that reaches a wanted accuracy."""

import logging
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from deploykit.methods import Options
from deploykit.tasks import Float32, TextOptions

# Fewer answered validation rows say little about their accuracy, and are warned of: 30 right of 30 still leaves a 95 %
# interval of 89 % to 100 % (Wilson).
MIN_ANSWERED_ROWS = 30
log = logging.getLogger(__name__)


class AbstentionOptions(Options):
    """Options of a task that may abstain."""

    abstain_below: float | None = Field(default=None, ge=0, le=1)
    """Probability of the label below which an answer says `abstained: true`; null: no answer does. With
    `abstain_accuracy`, training sets it."""
    abstain_accuracy: float | None = Field(default=None, gt=0, le=1)
    """Accuracy that the answers without `abstained` must have on the validation split: `abstain_below` is tuned to the
    lowest probability that gives it."""

    @model_validator(mode="after")
    def _sets_one_of_both(self) -> Self:
        if self.abstain_below is not None and self.abstain_accuracy is not None:
            raise ValueError("set either abstain_below or abstain_accuracy, from which abstain_below is tuned")
        return self


class TextAbstentionOptions(AbstentionOptions, TextOptions):
    """Options of a task that reads texts and may abstain."""


def tune_threshold(confidences: Float32, right: npt.NDArray[np.bool_], accuracy: float) -> float:
    """Returns the lowest threshold whose answered rows reach the wanted accuracy; 1.0 if there is none.

    A row is answered if its confidence is at least the threshold.

    Args:
        confidences: probability of the predicted label of each row, `(rows,)`.
        right: whether that label is right, `(rows,)`.
        accuracy: the wanted share of right rows among the answered ones, 0 to 1.
    """
    order = np.argsort(-confidences, kind="stable")
    ranked, rows = confidences[order], len(order)  # highest confidence first
    accuracies = right[order].cumsum() / np.arange(1, rows + 1)  # if the rows up to each rank are answered
    last_of_equal = np.append(ranked[:-1] != ranked[1:], True)  # rows of the same confidence are answered together
    accurate_ranks = np.flatnonzero(last_of_equal & (accuracies >= accuracy))
    if not len(accurate_ranks):
        log.warning(
            "no threshold gives the answers an accuracy of %g on the %d validation rows, not even one that answers only"
            " the surest: abstain_below is 1, so that almost every answer will say `abstained`. Lower abstain_accuracy,"
            " or train a better model",
            *(accuracy, rows),
        )
        return 1.0
    answered, threshold = int(accurate_ranks[-1]) + 1, float(ranked[accurate_ranks[-1]])
    log.info(
        "abstain_below is tuned to %.4f: %d of %d validation rows are answered, %.1f %% of them right",
        *(threshold, answered, rows, 100 * accuracies[answered - 1]),
    )
    if answered < MIN_ANSWERED_ROWS:
        log.warning("only %d validation rows are answered: so few say little about the accuracy", answered)
    return threshold
