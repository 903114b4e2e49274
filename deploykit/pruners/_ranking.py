"""How many heads and neurons each layer keeps, decided over all layers at once. Arrays only.

Units of a group (the heads of one layer, or its blocks of neurons) go from the least important up, so that a
choice is a count for each group. By shares, heads compete with heads and neurons with neurons. By time, all
compete for the same milliseconds: which counts are worth the most within a budget is a knapsack problem with
one choice a group, solved by dynamic programming over the budget (Frantar and Alistarh, SPDY, 2022, section
3.1) for times that were measured (Kurtic et al., ZipLM, 2023) and Fisher information (Kwon et al., 2022).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
CELLS = 8192  # of the budget; a group's cost is rounded up to whole cells


def by_share(worth: Sequence[Float64], keep: float) -> list[int]:
    """Returns how many units of each group are among the best `keep` of all groups together.

    Args:
        worth: importance, one array a group, `(units,)`. The best of each stays whatever it is worth.
        keep: the share that stays.
    """
    total = max(len(worth), round(keep * sum(map(len, worth))))
    everything = [(-row[index], group, index) for group, row in enumerate(worth) for index in range(len(row))]
    first = {(group, int(row.argmax())) for group, row in enumerate(worth)}
    rest = [(group, index) for _, group, index in sorted(everything) if (group, index) not in first]
    stays = [*first, *rest[: total - len(first)]]
    return [sum(found == group for found, _ in stays) for group in range(len(worth))]


def by_time(worth: Sequence[Float64], costs: Sequence[Float64], budget: float) -> list[int]:
    """Returns how many units of each group stay, at least one, so that they are worth the most in the time.

    Args:
        worth: importance, one array a group, `(units,)`, in any order.
        costs: time of 0, 1, ... units, one array a group, `(units + 1,)`, never falling. The entry of no units
            is not used, and that of one unit is taken off: it is no choice.
        budget: what all that is above one unit a group may cost.
    """
    best, chosen = np.zeros(CELLS + 1), []
    for row, cost in zip(worth, costs, strict=True):
        gain = np.cumsum(np.sort(row)[::-1])
        cells = np.ceil((cost[1:] - cost[1]) / max(budget, 1e-12) * CELLS - 1e-6).astype(int)
        totals = np.full((len(row), CELLS + 1), -np.inf)
        for index in np.flatnonzero(cells <= CELLS):
            totals[index, cells[index] :] = gain[index] + best[: CELLS + 1 - cells[index]]
        chosen.append((totals.argmax(axis=0), cells))
        best = totals.max(axis=0)
    counts, left = [], CELLS
    for indices, cells in reversed(chosen):
        counts.append(int(indices[left]) + 1)
        left -= int(cells[indices[left]])
    return counts[::-1]
