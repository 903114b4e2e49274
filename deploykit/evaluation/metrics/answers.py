"""Metrics of answers to questions: decisions are texts, and the gold is the texts of all right answers."""

import numpy as np

from deploykit.evaluation.metrics import Outcomes, Statistic, of_sums
from deploykit.tasks._answers import exact_match, word_f1


class ExactMatch:
    """The share of answers that are one of the right ones; no answer is right if there is none."""

    HIGHER = True
    score = staticmethod(exact_match)

    def value(self, outcomes: Outcomes) -> float:
        """Averages it over rows."""
        return float(np.mean(self._scores(outcomes)))

    def statistic(self, outcomes: Outcomes) -> Statistic:
        """Averages it over drawn rows."""
        table = np.stack([self._scores(outcomes), np.ones(len(outcomes))], axis=1)
        return of_sums(table, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))

    def _scores(self, outcomes: Outcomes) -> list[float]:
        return [self.score(decision, gold) for decision, gold in zip(outcomes.decisions, outcomes.gold, strict=True)]


class AnswerF1(ExactMatch):
    """The F1 of the words of an answer against the nearest right one, averaged over rows."""

    score = staticmethod(word_f1)
