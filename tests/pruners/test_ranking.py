from itertools import product

import numpy as np
import pytest

from deploykit.pruners._width import ranking


def test_blocks_of_neurons_are_ordered_by_importance_and_the_last_may_be_short():
    importance = np.random.default_rng(0).random(150)
    blocks, ordered = ranking.block_importance(importance), np.sort(importance)[::-1]
    np.testing.assert_allclose(blocks, [ordered[:64].sum(), ordered[64:128].sum(), ordered[128:].sum()])


def test_the_best_units_are_named_in_order_and_of_equals_the_first():
    assert ranking.most_important(np.array([1.0, 5.0, 5.0, 0.0, 5.0]), 3) == (1, 2, 4)
    assert ranking.most_important(np.ones(4), 2) == (0, 1)
    assert ranking.most_important(np.zeros(0), 0) == ()


# by share


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.75, 1.0])
def test_the_best_of_all_groups_stay_and_one_of_each(keep, seed):
    rng = np.random.default_rng(seed)
    importance = [rng.random(size) * scale for size, scale in ((12, 1), (12, 1e-6), (6, 100), (0, 1))]
    counts = ranking.counts_by_share(importance, keep)
    assert sum(counts) == max(3, round(keep * 30))
    assert min(counts[:3]) >= 1
    assert counts[3] == 0
    stays = [np.sort(row)[::-1][:count] for row, count in zip(importance, counts, strict=True)]
    removed = [np.sort(row)[::-1][count:] for row, count in zip(importance, counts, strict=True)]
    beaten = sum(np.concatenate(stays) < np.concatenate(removed).max(initial=-1))
    assert beaten <= 2  # only units that stay because they are the best of their group


def test_equal_importance_is_decided_the_same_way_every_time():
    assert ranking.counts_by_share([np.ones(4), np.ones(4)], 0.5) == [3, 1]


# by time


def brute_force(importance, costs, budget):
    """Returns the highest total importance of any choice within the budget."""
    highest = -1.0
    for counts in product(*(range(1, len(row) + 1) for row in importance)):
        if sum(cost[count] - cost[1] for cost, count in zip(costs, counts, strict=True)) <= budget:
            kept = sum(np.sort(row)[::-1][:count].sum() for row, count in zip(importance, counts, strict=True))
            highest = max(highest, kept)
    return highest


def spent(costs, counts):
    return sum(cost[count] - cost[1] for cost, count in zip(costs, counts, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_within_the_budget_has_a_higher_importance(seed):
    rng = np.random.default_rng(seed)
    sizes = (4, 3, 5, 2)
    importance = [rng.random(size) * rng.choice([0.1, 1, 10]) for size in sizes]
    costs = [np.cumsum([0, *rng.integers(0, 9, size)]).astype(float) for size in sizes]  # not convex
    for budget in (1, 4, 8, 16, 32, 64):  # in whole cells
        counts = ranking.counts_by_time(importance, costs, budget)
        assert spent(costs, counts) <= budget
        kept = sum(np.sort(row)[::-1][:count].sum() for row, count in zip(importance, counts, strict=True))
        assert kept == pytest.approx(brute_force(importance, costs, budget), rel=1e-12)


def test_the_budget_is_nearly_used_and_a_larger_one_never_keeps_less():
    rng = np.random.default_rng(0)
    importance = [rng.random(24) for _ in range(12)]
    costs = [np.cumsum([0, *rng.random(24)]) for _ in importance]
    whole, before = spent(costs, [24] * 12), -1.0
    for budget in np.linspace(0, 1, 21) * whole:
        counts = ranking.counts_by_time(importance, costs, budget)
        kept = sum(np.sort(row)[::-1][:count].sum() for row, count in zip(importance, counts, strict=True))
        assert budget - 1.0 <= spent(costs, counts) <= budget + 1e-9  # no unit costs more than 1
        assert kept >= before
        before = kept
    assert sum(counts) >= 12 * 24 - 2  # costs are rounded up


def test_one_unit_of_each_group_stays_without_any_budget():
    importance = [np.ones(3), np.ones(2), np.zeros(0)]
    costs = [np.array([0.0, 5, 6, 7]), np.array([0.0, 5, 6]), np.zeros(1)]
    for budget in (-1.0, 0.0, 0.9):
        assert ranking.counts_by_time(importance, costs, budget) == [1, 1, 0]
    assert ranking.counts_by_time(importance, costs, 1.0) in ([2, 1, 0], [1, 2, 0])
    assert ranking.counts_by_time(importance, costs, 4.0) == [3, 2, 0]


def test_free_units_stay_and_costly_units_without_importance_are_removed():
    free, dear = np.array([0.0, 2, 2, 2]), np.array([0.0, 2, 3, 4])
    assert ranking.counts_by_time([np.ones(3), np.array([1.0, 0, 0])], [free, dear], 0) == [3, 1]
    assert ranking.counts_by_time([np.ones(3), np.array([1.0, 0, 0])], [free, dear], 9) == [3, 1]


def test_a_cheap_unit_is_preferred_to_an_expensive_one_of_the_same_importance():
    importance = [np.ones(5), np.ones(5)]
    costs = [np.arange(6.0), np.arange(6.0) * 4]
    assert ranking.counts_by_time(importance, costs, 4) == [5, 1]
    assert ranking.counts_by_time(importance, costs, 8) == [5, 2]


def test_a_cost_table_may_be_longer_than_a_pruned_layer():
    assert ranking.counts_by_time([np.ones(2)], [np.arange(9.0)], 99) == [2]
