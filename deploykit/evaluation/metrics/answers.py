"""Metrics for answers to questions: a decision is a text, and the gold are the texts of all right answers."""

import numpy as np

from deploykit.evaluation.metrics import Outcomes, Statistic, statistic_of_sums
from deploykit.tasks._answers import exact_match, word_f1


class ExactMatch:
    """The share of answers that equal a right one; where a question has none, an empty answer is right."""

    HIGHER_IS_BETTER = True
    score = staticmethod(exact_match)  # of one answer, from 0 to 1

    def value(self, outcomes: Outcomes) -> float:
        """Averages the scores of all answers."""
        return float(np.mean(self._scores(outcomes)))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Averages the scores of drawn answers."""
        counts = np.stack([self._scores(outcomes), np.ones(len(outcomes))], axis=1)
        return statistic_of_sums(counts, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))

    def _scores(self, outcomes: Outcomes) -> list[float]:
        """Returns the score of each answer."""
        return [self.score(decision, gold) for decision, gold in zip(outcomes.decisions, outcomes.gold, strict=True)]


class AnswerF1(ExactMatch):
    """The F1 of an answer's words against those of the right answer that is most like it, averaged over answers."""

    score = staticmethod(word_f1)
