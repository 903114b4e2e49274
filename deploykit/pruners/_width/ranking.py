"""Chooses how many heads and blocks of neurons each layer keeps, over all layers at once; works on arrays only.

A group is the heads of one layer, or its blocks of neurons. Within a group the least important units are removed first,
so a choice is one count per group. `by_share` ranks all groups together by importance. `by_time` finds the counts with
the highest total importance within a time budget: a knapsack problem with one choice per group, solved by dynamic
programming over the budget (Frantar and Alistarh, SPDY, 2022, section 3.1), on measured times (Kurtic et al., ZipLM,
2023) and with Fisher information as importance (Kwon et al., 2022).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
BLOCK_NEURONS = 64  # neurons are removed in blocks of this size: part of a CPU tile of matrix units saves no time
BUDGET_CELLS = 32768  # the time budget is divided into these cells; the cost of a group is rounded up to whole cells


def in_blocks(neurons: Float64) -> Float64:
    """Sorts neurons by importance, groups them into blocks, and returns the importance of each block, best first."""
    return np.add.reduceat(np.sort(neurons)[::-1], np.arange(0, len(neurons), BLOCK_NEURONS))


def best(importance: Float64, count: int) -> tuple[int, ...]:
    """Returns the indices of the `count` most important units, ascending; among equals, lower indices come first."""
    return tuple(sorted(np.argsort(-importance, kind="stable")[:count].tolist()))


def by_share(importance: Sequence[Float64], keep: float) -> list[int]:
    """Returns how many units of each group belong to the best share of all units.

    Args:
        importance: one array per group, `(units,)`. The best unit of each group always stays; an empty group stays
            empty.
        keep: share of all units to keep.
    """
    first = {(group, int(row.argmax())) for group, row in enumerate(importance) if len(row)}
    total = max(len(first), round(keep * sum(map(len, importance))))
    ranked = sorted((-row[index], group, index) for group, row in enumerate(importance) for index in range(len(row)))
    rest = [(group, index) for _, group, index in ranked if (group, index) not in first]
    groups = [group for group, _ in (*first, *rest[: total - len(first)])]
    return [groups.count(group) for group in range(len(importance))]


def by_time(importance: Sequence[Float64], costs: Sequence[Float64], budget: float) -> list[int]:
    """Returns how many units of each group to keep so that the total importance within the budget is highest.

    Args:
        importance: one array per group, `(units,)`; an empty group stays empty.
        costs: of 0, 1, ... units, one non-decreasing array per group with at least `units + 1` entries. The cost of one
            unit is subtracted, because one unit always stays.
        budget: for the costs beyond one unit per group. If it is negative, only units that cost nothing are added.
    """
    totals, choices = np.zeros(BUDGET_CELLS + 1), []  # totals: the highest importance for each number of cells
    for row, cost in zip(importance, costs, strict=True):
        gains = np.cumsum(np.sort(row)[::-1]) if len(row) else np.zeros(1)
        fewest = min(len(row), 1)
        extra = cost[fewest : fewest + len(gains)] - cost[fewest]
        cells = np.ceil(extra / max(budget, 1e-9) * BUDGET_CELLS - 1e-6).astype(np.int64)
        with_count = np.full((len(gains), BUDGET_CELLS + 1), -np.inf)
        for index in np.flatnonzero(cells <= BUDGET_CELLS):
            with_count[index, cells[index] :] = gains[index] + totals[: BUDGET_CELLS + 1 - cells[index]]
        choices.append((with_count.argmax(axis=0), cells, fewest))
        totals = with_count.max(axis=0)
    counts, free_cells = [], BUDGET_CELLS
    for indices, cells, fewest in reversed(choices):
        counts.append(int(indices[free_cells]) + fewest)
        free_cells -= int(cells[indices[free_cells]])
    return counts[::-1]
