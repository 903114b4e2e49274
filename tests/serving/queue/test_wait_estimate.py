"""What an estimator learns from the waits of a queue."""

import numpy as np
import pytest

from deploykit.serving.queue.wait_estimate import MAX_MARGIN, WaitEstimator


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 0.1), (1.2, 0.5), (0.6, 0.1)])
def test_99_percent_of_waits_are_within_the_margin_and_it_is_no_wider(mean, spread):
    waits, random = WaitEstimator(1), np.random.default_rng(0)
    ratios = random.uniform(mean - spread, mean + spread, 5_000)
    for ratio in ratios:
        waits.learn_wait(0.4 * ratio, 0.4)
    assert waits.margin == pytest.approx(max(np.quantile(ratios, 0.99), 1), rel=0.05)


def test_a_margin_is_learned_and_forgotten_within_hundreds_of_texts():
    waits = WaitEstimator(1)
    for _ in range(500):
        waits.learn_wait(0.6, 0.3)
    assert waits.margin > 1.8
    for _ in range(10_000):
        waits.learn_wait(60, 0.3)
    assert waits.margin == MAX_MARGIN
    for _ in range(1_500):
        waits.learn_wait(0.3, 0.3)
    assert waits.margin == pytest.approx(1, abs=0.1)


def test_estimates_follow_the_time_of_batches_and_are_divided_by_streams():
    for streams in (1, 2):
        waits = WaitEstimator(streams)
        for _ in range(50):
            waits.learn_batch(0.03, 0.06)
        assert waits.estimate_s(1.0) == pytest.approx(0.5 / streams, rel=0.05)
