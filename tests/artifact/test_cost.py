import itertools

import numpy as np
import pytest

from deploykit.artifact.cost import EVERY, PRIOR, Cost, Learned, _non_negative

START = Cost(fixed=2e-3, per_token=1e-4, per_square=1e-8)


def taught(learned, true, batches, seed=0, noise=0.0, widths=(8, 300)):
    """Shows random batches of another cost."""
    random = np.random.default_rng(seed)
    for _ in range(batches):
        items, width = int(random.integers(1, 17)), int(random.integers(*widths))
        learned.learn(items, width, true.seconds(items, width) * (1 + noise * random.normal()))
    return learned.now


def test_until_something_is_learned_it_is_what_was_measured():
    assert Learned(START).now == START
    assert taught(Learned(START), Cost(fixed=9.0), EVERY - 1) == START


def test_what_was_measured_is_found_again():
    found = taught(Learned(START), START, 5 * EVERY)
    assert found.model_dump() == pytest.approx(START.model_dump(), rel=1e-6)


@pytest.mark.parametrize(
    "true",
    [
        Cost(fixed=4e-3, per_token=2e-4, per_square=2e-8),  # the machine is half as fast
        Cost(fixed=1e-3, per_token=3e-4, per_square=0.0),
        Cost(fixed=0.0, per_token=1e-4, per_square=3e-7),
    ],
)
def test_it_follows_what_batches_take(true):
    found = taught(Learned(START), true, 3000, noise=0.1)
    for items, width in itertools.product((1, 4, 16), (16, 64, 256)):
        assert found.seconds(items, width) == pytest.approx(true.seconds(items, width), rel=0.15)


def test_it_forgets():
    learned = Learned(START)
    taught(learned, Cost(fixed=5e-2, per_token=1e-3), 2000)
    assert taught(learned, START, 3000).seconds(4, 64) == pytest.approx(START.seconds(4, 64), rel=0.05)


def test_one_length_says_nothing_of_others():
    twice = Cost(**{name: 2 * value for name, value in START.model_dump().items()})
    found = taught(Learned(START), twice, int(PRIOR) * 10, widths=(30, 34))
    assert found.seconds(4, 32) == pytest.approx(twice.seconds(4, 32), rel=0.15)
    assert START.seconds(4, 512) * 0.8 < found.seconds(4, 512) < twice.seconds(4, 512) * 1.2


@pytest.mark.parametrize(
    ("items", "width", "tokens", "waiting", "joins"),
    [
        (1, 16, 16, 1, True),  # of 3.6 ms alone it saves 2
        (4, 16, 16, 1, False),  # one saves them, four wait 1.6 ms longer
        (4, 16, 16, 4, True),
        (1, 512, 512, 1, False),  # two long texts take hardly less together
        (1, 512, 512, 40, True),  # of which many gain, where many wait
        (4, 24, 16, 9, True),
        (4, 64, 16, 99, False),  # padding costs more than a call of its own
    ],
)
def test_a_text_joins_a_batch_where_all_wait_less(items, width, tokens, waiting, joins):
    assert START.pays(items, width, tokens, waiting) == joins
    with_it = START.seconds(items + 1, max(width, tokens))
    without, alone = START.seconds(items, width), START.seconds(1, tokens)
    together = (items + waiting) * with_it
    apart = items * without + waiting * (without + alone)
    assert (together <= apart) == joins  # until the batch, or else the text behind it, is done


def test_a_measurement_of_nothing_does_no_harm():
    learned = Learned(Cost(fixed=0.0, per_token=0.0))
    for _ in range(EVERY):
        learned.learn(1, 1, 0.0)
    assert all(np.isfinite(value) for value in learned.now.model_dump().values())


def test_the_solution_is_the_best_that_is_not_negative():
    random = np.random.default_rng(0)
    for _ in range(50):
        rows = random.normal(size=(9, 3))
        square, right = rows.T @ rows, random.normal(size=3)
        found = _non_negative(square, right)
        assert (found >= 0).all()
        slope = square @ found - right  # Karush, Kuhn and Tucker: no direction that is open goes down
        assert (slope >= -1e-9).all()
        assert slope[found > 0] == pytest.approx(0.0, abs=1e-9)
