"""How many heads and blocks of neurons each layer keeps, decided over all layers at once. Arrays only.

The units of a group (the heads of one layer, or its blocks of neurons) go from the least important up, so that a
choice is a count for each group. By share, heads compete with heads and blocks with blocks. By time, all compete
for the same milliseconds: which counts are worth the most within a budget is a knapsack problem with one choice
a group, solved by dynamic programming over the budget (Frantar and Alistarh, SPDY, 2022, section 3.1), for times
that were measured (Kurtic et al., ZipLM, 2023) and Fisher information (Kwon et al., 2022).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
BLOCK = 64  # neurons are removed in blocks that fill a tile of the matrix units
CELLS = 32768  # of the budget; what a group costs is rounded up to whole cells


def in_blocks(neurons: Float64) -> Float64:
    """Returns the importance of blocks of neurons, best first, of the importance of each neuron."""
    return np.add.reduceat(np.sort(neurons)[::-1], np.arange(0, len(neurons), BLOCK))


def best(worth: Float64, count: int) -> tuple[int, ...]:
    """Returns the indices of the `count` most important units, ascending; of equals the first."""
    return tuple(sorted(np.argsort(-worth, kind="stable")[:count].tolist()))


def by_share(worth: Sequence[Float64], keep: float) -> list[int]:
    """Returns how many units of each group are among the best `keep` of all groups together.

    Args:
        worth: importance, one array a group, `(units,)`; the best of each stays whatever it is worth, and an
            empty group stays empty.
        keep: the share that stays.
    """
    first = {(group, int(row.argmax())) for group, row in enumerate(worth) if len(row)}
    total = max(len(first), round(keep * sum(map(len, worth))))
    everything = [(-row[index], group, index) for group, row in enumerate(worth) for index in range(len(row))]
    rest = [(group, index) for _, group, index in sorted(everything) if (group, index) not in first]
    stays = [*first, *rest[: total - len(first)]]
    return [sum(found == group for found, _ in stays) for group in range(len(worth))]


def by_time(worth: Sequence[Float64], costs: Sequence[Float64], budget: float) -> list[int]:
    """Returns how many units of each group stay, so that they are worth the most in the time that there is.

    Args:
        worth: importance, one array a group, `(units,)`; an empty group stays empty.
        costs: of 0, 1, ... units, one array a group, never falling; at least `units + 1` entries, of which that
            of one unit is taken off all others: one unit stays in any case.
        budget: of all costs above one unit a group; where it is less than nothing, only what costs nothing stays.
    """
    totals, choices = np.zeros(CELLS + 1), []  # the most worth for each number of cells
    for row, cost in zip(worth, costs, strict=True):
        gains = np.cumsum(np.sort(row)[::-1]) if len(row) else np.zeros(1)
        fewest = min(len(row), 1)
        above = cost[fewest : fewest + len(gains)] - cost[fewest]
        cells = np.ceil(above / max(budget, 1e-9) * CELLS - 1e-6).astype(np.int64)
        with_count = np.full((len(gains), CELLS + 1), -np.inf)
        for index in np.flatnonzero(cells <= CELLS):
            with_count[index, cells[index] :] = gains[index] + totals[: CELLS + 1 - cells[index]]
        choices.append((with_count.argmax(axis=0), cells, fewest))
        totals = with_count.max(axis=0)
    counts, left = [], CELLS
    for indices, cells, fewest in reversed(choices):
        counts.append(int(indices[left]) + fewest)
        left -= int(cells[indices[left]])
    return counts[::-1]
