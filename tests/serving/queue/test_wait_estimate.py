"""What a queue learns of its waits."""

import numpy as np
import pytest

from deploykit.serving.queue.wait_estimate import MOST, Waits


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 0.1), (1.2, 0.5), (0.6, 0.1)])
def test_the_margin_holds_for_nearly_all_and_is_no_wider_than_that(mean, spread):
    waits, random = Waits(1), np.random.default_rng(0)
    shares = random.uniform(mean - spread, mean + spread, 5_000)
    for share in shares:
        waits.waited(0.4 * share, 0.4)
    assert waits.margin == pytest.approx(max(np.quantile(shares, 0.99), 1), rel=0.05)


def test_a_margin_is_learned_and_forgotten_within_some_hundred_texts():
    waits = Waits(1)
    for _ in range(500):
        waits.waited(0.6, 0.3)
    assert waits.margin > 1.8
    for _ in range(10_000):
        waits.waited(60, 0.3)
    assert waits.margin == MOST
    for _ in range(1_500):
        waits.waited(0.3, 0.3)
    assert waits.margin == pytest.approx(1, abs=0.1)


def test_waits_follow_what_batches_take_and_streams_share_it():
    for streams in (1, 2):
        waits = Waits(streams)
        for _ in range(50):
            waits.ran(0.03, 0.06)
        assert waits.takes(1.0) == pytest.approx(0.5 / streams, rel=0.05)
