"""Chooses the heads and neurons that each layer keeps, either for a share of all or for a measured speedup."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deploykit.artifact import Metric
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits
from deploykit.pruners._width.latency_table import LatencyTable, predicted_time
from deploykit.pruners._width.meter import Measure
from deploykit.pruners._width.ranking import BLOCK_NEURONS, Float64, best, by_share, by_time, in_blocks

MAX_MEASUREMENTS = 4  # of one choice; each exports and times a model
MIN_BUDGET_USE = 0.97  # a model that takes less of the time budget could keep more heads and neurons
TARGET_BUDGET_USE = (1 + MIN_BUDGET_USE) / 2  # the middle, so that noise in either direction stays in the range
MAX_BUDGET_STEP = 0.05  # relative change per try: the table is nearly right, while one measurement may be disturbed
MAX_INTERVAL_SHARE = 0.2  # of the speedup; a wider interval means that other processes disturbed the measurement
log = logging.getLogger(__name__)


def keep_share(heads: Sequence[Float64], neurons: Sequence[Float64], keep: float) -> list[KeptUnits]:
    """Keeps the best share of the heads of all layers together, and of the blocks of neurons; see `keep_for_speedup`.

    At least one head and one block stay in each layer.
    """
    return _kept(heads, neurons, [*by_share(heads, keep), *by_share([in_blocks(row) for row in neurons], keep)])


def keep_within(
    heads: Sequence[Float64], neurons: Sequence[Float64], table: LatencyTable, budget: float
) -> list[KeptUnits]:
    """Keeps the heads and neurons with the highest total importance within a budget, as share of the full time."""
    importance = [*heads, *(in_blocks(row) for row in neurons)]
    costs = [table.attention] * len(heads) + [table.feed_forward] * len(neurons)
    return _kept(heads, neurons, by_time(importance, costs, budget - table.fixed))


def _kept(heads: Sequence[Float64], neurons: Sequence[Float64], counts: Sequence[int]) -> list[KeptUnits]:
    """Turns counts (heads of each layer, then blocks of each layer) into the indices that each layer keeps."""
    layers = zip(heads, neurons, counts[: len(heads)], counts[len(heads) :], strict=True)
    return [KeptUnits(best(h, count), best(n, blocks * BLOCK_NEURONS)) for h, n, count, blocks in layers]


def keep_for_speedup(
    model: torch.nn.Module,
    heads: Sequence[Float64],
    neurons: Sequence[Float64],
    table: LatencyTable,
    measure: Measure,
    speedup: float,
) -> tuple[list[KeptUnits], dict[str, Any]]:
    """Keeps the most important heads and neurons of a model that must be this many times as fast as the whole model.

    The table predicts the time of a choice, and a measurement checks it. If the measured time is not within the range,
    the budget is corrected by the ratio, in small steps, and the choice is repeated.

    Args:
        model: the model to prune, which may have been pruned before.
        heads: importance, one array per layer, `(heads,)`; empty if heads cannot be removed.
        neurons: importance, one array per layer, `(neurons,)`.
        table: the cost of heads and blocks.
        measure: times a model.
        speedup: over the whole model.

    Returns:
        The units to keep, and the facts: the speedup wanted, predicted and measured. If all tries are too slow, the
        fastest is returned; otherwise the slowest of those that are fast enough, because it keeps the most.
    """
    tries = list[tuple[list[KeptUnits], Metric]]()
    wanted = 1 / speedup
    budget = TARGET_BUDGET_USE * wanted
    while len(tries) < MAX_MEASUREMENTS and not (tries and MIN_BUDGET_USE * wanted <= tries[-1][1].value <= wanted):
        kept = keep_within(heads, neurons, table, budget)
        tries.append((kept, measure(surgery.shrunk(model, kept))))
        budget *= np.clip(TARGET_BUDGET_USE * wanted / tries[-1][1].value, 1 - MAX_BUDGET_STEP, 1 + MAX_BUDGET_STEP)
    fast = [entry for entry in tries if entry[1].value <= wanted]
    kept, share = max(fast or tries, key=lambda entry: entry[1].value if fast else -entry[1].value)
    measured = Metric(value=1 / share.value, low=1 / share.high, high=1 / share.low)
    predicted = 1 / predicted_time(table, [surgery.Shape(len(layer.heads), len(layer.neurons)) for layer in kept])
    if measured.high - measured.low > MAX_INTERVAL_SHARE * measured.value:
        log.warning("other processes disturbed the measurement; run it again on an idle machine")
    log.info("speedup: %.3g wanted, %.3g predicted, %.3g measured", speedup, predicted, measured.value)
    return kept, {"speedup": {"wanted": speedup, "predicted": predicted, "measured": measured.model_dump()}}
