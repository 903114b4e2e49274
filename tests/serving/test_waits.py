"""What a queue learns of its waits."""

import numpy as np
import pytest

from deploykit.serving.waits import Waits


def test_the_bound_of_the_wait_holds_for_nearly_all_though_others_pass():
    random, late = np.random.default_rng(0), []
    waits = Waits(1)

    def let_in_at_the_bound(factor):
        waited = 0.5 / waits.correction * factor
        waits.waited([(waited, 0.5)])
        late.append(waited > 0.5)

    for factor in random.lognormal(0.2, 0.2, 20_000):
        let_in_at_the_bound(factor)
    assert np.mean(late[2_000:]) == pytest.approx(0.01, abs=0.004)
    for _ in range(20_000):
        let_in_at_the_bound(0.5)
    assert waits.correction == 1  # nobody passes any more


def test_texts_that_are_late_together_count_once_and_those_that_were_not_near_the_bound_do_not():
    waits = Waits(1)
    waits.waited([(0.9, np.inf)] * 5)
    assert waits.correction == 1
    waits.waited([(0.9, 0.5)] * 5)
    assert waits.correction == pytest.approx(1.005, abs=1e-4)


def test_waits_follow_what_batches_take_and_streams_share_it():
    for streams in (1, 2):
        waits = Waits(streams)
        for _ in range(50):
            waits.ran(0.03, 0.06)
        assert waits.takes(1.0) == pytest.approx(0.5 / streams, rel=0.05)
        waits.waited([(1.0, 0.5)])
        assert waits.expected(1.0) > waits.takes(1.0)
