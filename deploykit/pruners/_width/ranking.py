"""Chooses how many heads and blocks of neurons each layer keeps; works on arrays only, and on all layers at once.

A unit is a head or a block of neurons. A group is the heads of one layer, or its blocks. Within a group the least
important units are removed first, so a choice is one count per group. `counts_by_share` ranks the units of all groups
together by importance. `counts_by_time` finds the counts with the highest total importance within a time budget: a
knapsack problem with one choice per group, solved by dynamic programming over the budget (Frantar and Alistarh, SPDY,
2022, section 3.1), on measured times (Kurtic et al., ZipLM, 2023) and with Fisher information as importance (Kwon et
al., 2022).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
BLOCK_NEURONS = 64  # neurons are removed in blocks of this size, because CPUs compute whole tiles of a matrix anyway
BUDGET_CELLS = 32768  # equal parts of the time budget; the cost of a group is rounded up to whole parts


def block_importance(neurons: Float64) -> Float64:
    """Returns the importance of blocks of neurons, best first.

    A block is `BLOCK_NEURONS` neurons that are next to each other in the order of importance.

    Args:
        neurons: importance of each neuron, `(neurons,)`.
    """
    return np.add.reduceat(np.sort(neurons)[::-1], np.arange(0, len(neurons), BLOCK_NEURONS))


def most_important(importance: Float64, count: int) -> tuple[int, ...]:
    """Returns the indices of the `count` most important units, ascending; of equal units, those with lower indices."""
    return tuple(sorted(np.argsort(-importance, kind="stable")[:count].tolist()))


def counts_by_share(importance: Sequence[Float64], keep: float) -> list[int]:
    """Returns how many units each group keeps if the most important share of all units is kept.

    Args:
        importance: one array per group, `(units,)`. Each group keeps at least its most important unit; an empty group
            stays empty.
        keep: share of all units to keep.
    """
    always_kept = {(group, int(units.argmax())) for group, units in enumerate(importance) if len(units)}
    total = max(len(always_kept), round(keep * sum(map(len, importance))))
    ranked = sorted(
        (-units[index], group, index) for group, units in enumerate(importance) for index in range(len(units))
    )
    others = [(group, index) for _, group, index in ranked if (group, index) not in always_kept]
    kept_groups = [group for group, _ in (*always_kept, *others[: total - len(always_kept)])]  # one entry per kept unit
    return [kept_groups.count(group) for group in range(len(importance))]


def counts_by_time(importance: Sequence[Float64], costs: Sequence[Float64], budget: float) -> list[int]:
    """Returns how many units each group keeps so that the total importance within the time budget is highest.

    Args:
        importance: one array per group, `(units,)`; an empty group stays empty.
        costs: time of 0, 1, ... units, one non-decreasing array per group with at least `units + 1` entries. The cost
            of one unit is subtracted, because each group keeps at least one.
        budget: time for the costs beyond one unit per group. If it is negative, only units that cost nothing are added.
    """
    # best_totals[c]: the highest importance of the groups so far that costs at most c cells.
    best_totals, choices = np.zeros(BUDGET_CELLS + 1), []
    for units, cost in zip(importance, costs, strict=True):
        # Row i of the arrays below stands for keeping `min_count + i` units of this group.
        gains = np.cumsum(np.sort(units)[::-1]) if len(units) else np.zeros(1)
        min_count = min(len(units), 1)
        extra_cost = cost[min_count : min_count + len(gains)] - cost[min_count]
        cells = np.ceil(extra_cost / max(budget, 1e-9) * BUDGET_CELLS - 1e-6).astype(np.int64)
        totals = np.full((len(gains), BUDGET_CELLS + 1), -np.inf)
        for row in np.flatnonzero(cells <= BUDGET_CELLS):
            totals[row, cells[row] :] = gains[row] + best_totals[: BUDGET_CELLS + 1 - cells[row]]
        choices.append((totals.argmax(axis=0), cells, min_count))
        best_totals = totals.max(axis=0)
    # Reads the choices backwards: that of the last group for the whole budget, that of the group before for the rest.
    counts, free_cells = [], BUDGET_CELLS
    for best_rows, cells, min_count in reversed(choices):
        best_row = int(best_rows[free_cells])
        counts.append(best_row + min_count)
        free_cells -= int(cells[best_row])
    return counts[::-1]
