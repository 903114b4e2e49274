import itertools

import numpy as np
import pytest

from deploykit.artifact.cost import INITIAL_PRIOR_BATCHES, REFIT_BATCHES, Cost, LearnedCost, _solve_non_negative

START = Cost(fixed=2e-3, per_token=1e-4, per_square=1e-8)


def taught(learned, true, batches, seed=0, noise=0.0, widths=(8, 300)):
    """Learns from random batches whose times follow another cost."""
    random = np.random.default_rng(seed)
    for _ in range(batches):
        items, width = int(random.integers(1, 17)), int(random.integers(*widths))
        learned.learn(items, width, true.seconds(items, width) * (1 + noise * random.normal()))
    return learned.current


def test_until_the_first_refit_the_cost_is_the_prior():
    assert LearnedCost(START).current == START
    assert taught(LearnedCost(START), Cost(fixed=9.0), REFIT_BATCHES - 1) == START


def test_batches_that_follow_the_prior_leave_it_unchanged():
    cost = taught(LearnedCost(START), START, 5 * REFIT_BATCHES)
    assert cost.model_dump() == pytest.approx(START.model_dump(), rel=1e-6)


@pytest.mark.parametrize(
    "true",
    [
        Cost(fixed=4e-3, per_token=2e-4, per_square=2e-8),  # the machine is half as fast
        Cost(fixed=1e-3, per_token=3e-4, per_square=0.0),
        Cost(fixed=0.0, per_token=1e-4, per_square=3e-7),
    ],
)
def test_the_cost_follows_the_measured_batches(true):
    cost = taught(LearnedCost(START), true, 3000, noise=0.1)
    for items, width in itertools.product((1, 4, 16), (16, 64, 256)):
        assert cost.seconds(items, width) == pytest.approx(true.seconds(items, width), rel=0.15)


def test_old_batches_are_forgotten():
    learned = LearnedCost(START)
    taught(learned, Cost(fixed=5e-2, per_token=1e-3), 2000)
    assert taught(learned, START, 3000).seconds(4, 64) == pytest.approx(START.seconds(4, 64), rel=0.05)


def test_one_length_hardly_changes_the_cost_of_others():
    twice = Cost(**{name: 2 * value for name, value in START.model_dump().items()})
    cost = taught(LearnedCost(START), twice, int(INITIAL_PRIOR_BATCHES) * 10, widths=(30, 34))
    assert cost.seconds(4, 32) == pytest.approx(twice.seconds(4, 32), rel=0.15)
    assert START.seconds(4, 512) * 0.8 < cost.seconds(4, 512) < twice.seconds(4, 512) * 1.2


@pytest.mark.parametrize(
    ("items", "width", "tokens", "waiting", "joins"),
    [
        (1, 16, 16, 1, True),  # alone it would take 3.6 ms; sharing the fixed cost saves 2 ms
        (4, 16, 16, 1, False),  # one text saves 2 ms, four wait 1.6 ms longer
        (4, 16, 16, 4, True),
        (1, 512, 512, 1, False),  # two long texts take hardly less time together
        (1, 512, 512, 40, True),  # a small gain, but for many waiting texts
        (4, 24, 16, 9, True),
        (4, 64, 16, 99, False),  # padding costs more than a separate call
    ],
)
def test_a_text_joins_a_batch_if_the_total_waiting_time_falls(items, width, tokens, waiting, joins):
    assert START.should_add_text(items, width, tokens, waiting) == joins
    with_it = START.seconds(items + 1, max(width, tokens))
    without, alone = START.seconds(items, width), START.seconds(1, tokens)
    together = (items + waiting) * with_it
    apart = items * without + waiting * (without + alone)
    assert (together <= apart) == joins  # until the batch, or else the text behind it, is done


def test_batches_of_zero_seconds_leave_the_cost_finite():
    learned = LearnedCost(Cost(fixed=0.0, per_token=0.0))
    for _ in range(REFIT_BATCHES):
        learned.learn(1, 1, 0.0)
    assert all(np.isfinite(value) for value in learned.current.model_dump().values())


def test_the_solution_is_the_best_non_negative_one():
    random = np.random.default_rng(0)
    for _ in range(50):
        rows = random.normal(size=(9, 3))
        matrix, vector = rows.T @ rows, random.normal(size=3)
        solution = _solve_non_negative(matrix, vector)
        assert (solution >= 0).all()
        slope = matrix @ solution - vector  # Karush-Kuhn-Tucker conditions: no feasible direction descends
        assert (slope >= -1e-9).all()
        assert slope[solution > 0] == pytest.approx(0.0, abs=1e-9)
