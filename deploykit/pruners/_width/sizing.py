"""What stays of each layer: for a share of all, or for a speedup that is measured."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deploykit.artifact import Metric
from deploykit.modeling import surgery
from deploykit.modeling.surgery import Kept
from deploykit.pruners._width.latency_table import Table, time_of
from deploykit.pruners._width.meter import Measure
from deploykit.pruners._width.ranking import BLOCK, Float64, best, by_share, by_time, in_blocks

TRIES = 4  # how often a structure is chosen and measured
NEAR = 0.97  # of the time that there is: a model that takes less gets more heads and neurons
AIM = (1 + NEAR) / 2  # of it, so that the noise of measuring may go either way
STEP = 0.05  # the most that a budget is changed at once: the table is not far off, a busy machine may be
BUSY = 0.2  # a wider interval, as a share of the speedup, says that something else was running
log = logging.getLogger(__name__)


def of_share(heads: Sequence[Float64], neurons: Sequence[Float64], keep: float) -> list[Kept]:
    """Ranks heads over all layers, and blocks of neurons over all layers, and keeps the best of each.

    Args:
        heads: importance, one array a layer, `(heads,)`; empty where heads cannot go.
        neurons: importance, one array a layer, `(neurons,)`.
        keep: the share that stays; at least one head and one block stay in each layer.
    """
    return _kept(heads, neurons, [*by_share(heads, keep), *by_share([in_blocks(row) for row in neurons], keep)])


def of_time(heads: Sequence[Float64], neurons: Sequence[Float64], table: Table, budget: float) -> list[Kept]:
    """Keeps what is worth the most in a time.

    Args:
        heads: importance, one array a layer, `(heads,)`; empty where heads cannot go.
        neurons: importance, one array a layer, `(neurons,)`.
        table: what they cost.
        budget: as a share of the whole model's time.
    """
    worth = [*heads, *(in_blocks(row) for row in neurons)]
    costs = [table.attention] * len(heads) + [table.feed_forward] * len(neurons)
    return _kept(heads, neurons, by_time(worth, costs, budget - table.fixed))


def _kept(heads: Sequence[Float64], neurons: Sequence[Float64], counts: Sequence[int]) -> list[Kept]:
    """Turns the numbers of heads and then of blocks, of each layer, into what stays."""
    pairs = zip(heads, neurons, counts[: len(heads)], counts[len(heads) :], strict=True)
    return [Kept(best(row, count), best(other, blocks * BLOCK)) for row, other, count, blocks in pairs]


def of_speedup(
    model: torch.nn.Module,
    heads: Sequence[Float64],
    neurons: Sequence[Float64],
    table: Table,
    measure: Measure,
    speedup: float,
) -> tuple[list[Kept], dict[str, Any]]:
    """Keeps what is worth the most in a model that is this many times as fast as the whole one.

    The table predicts, the measurement decides: where it says otherwise, the budget is changed by as much as the
    prediction was off, a little at a time, and the choice is made again.

    Args:
        model: what is left of the whole one by now.
        heads: importance, one array a layer, `(heads,)`; empty where heads cannot go.
        neurons: importance, one array a layer, `(neurons,)`.
        table: what they cost.
        measure: times a model.
        speedup: over the whole model.

    Returns:
        What stays, and the facts: the speedup wanted, predicted and measured. Where all tries are too slow, the
        fastest; else the slowest of those that are fast enough, which keeps the most.
    """
    tried = list[tuple[list[Kept], Metric]]()
    wanted = 1 / speedup
    budget = AIM * wanted
    while len(tried) < TRIES and not (tried and NEAR * wanted <= tried[-1][1].value <= wanted):
        kept = of_time(heads, neurons, table, budget)
        tried.append((kept, measure(surgery.shrunk(model, kept))))
        budget *= np.clip(AIM * wanted / tried[-1][1].value, 1 - STEP, 1 + STEP)
    enough = [found for found in tried if found[1].value <= wanted]
    kept, share = max(enough or tried, key=lambda found: found[1].value if enough else -found[1].value)
    found = Metric(value=1 / share.value, low=1 / share.high, high=1 / share.low)
    predicted = 1 / time_of(table, [surgery.Shape(len(keep.heads), len(keep.neurons)) for keep in kept])
    if found.high - found.low > BUSY * found.value:
        log.warning("other processes disturb the measurement: run it again on a machine that is quiet")
    log.info("speedup: %.3g wanted, %.3g predicted, %.3g measured", speedup, predicted, found.value)
    return kept, {"speedup": {"wanted": speedup, "predicted": predicted, "measured": found.model_dump()}}
