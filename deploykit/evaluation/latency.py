"""How long a text takes when it comes alone, at the lengths of the user's own texts: what `max_p95_ms` bounds."""

import time
from collections.abc import Sequence

import numpy as np

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap
from deploykit.inference.predictor import Predictor
from deploykit.tasks import Example

TEXTS = 300
FIRST = 10  # not timed: first calls build caches


def p95(predictor: Predictor, examples: Sequence[Example], seed: int) -> Metric:
    """Times single texts, tokenization included.

    Args:
        predictor: what is served.
        examples: usually the validation split; at most 300 drawn from it are timed.
        seed: of the draw and of the bootstrap.

    Returns:
        The 95 % quantile in milliseconds, with its bootstrap interval over texts.
    """
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(examples))[:TEXTS]
    for index in chosen[:FIRST]:
        _milliseconds(predictor, examples[index])
    times = np.array([_milliseconds(predictor, examples[index]) for index in chosen])
    samples = bootstrap.of_values(times, lambda drawn: np.quantile(drawn, 0.95, axis=1), random)
    low, high = bootstrap.interval(samples)
    return Metric(value=float(np.quantile(times, 0.95)), low=low, high=high)


def _milliseconds(predictor: Predictor, example: Example) -> float:
    start = time.perf_counter()
    predictor.predict([example.text], [example.pair])
    return (time.perf_counter() - start) * 1000
