"""Chooses the heads and neurons that each layer keeps, either for a share of all or for a measured speedup."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deploykit.artifact import Metric
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits
from deploykit.pruners._width.latency_table import LatencyTable, predict_time
from deploykit.pruners._width.meter import Measure
from deploykit.pruners._width.ranking import (
    BLOCK_NEURONS,
    Float64,
    block_importance,
    counts_by_share,
    counts_by_time,
    most_important,
)

MAX_MEASUREMENTS = 4  # tries for one speedup; each exports and times a model
MIN_TIME_USE = 0.97  # of the wanted time; a faster model could keep more heads and neurons
TARGET_TIME_USE = (1 + MIN_TIME_USE) / 2  # the middle of the allowed range, so that noise rarely leads out of it
MAX_BUDGET_CHANGE = 0.05  # relative, per try; the table is nearly right, and a single measurement may be disturbed
MAX_INTERVAL_SHARE = 0.2  # of the speedup; a wider interval means that other processes disturbed the measurement
log = logging.getLogger(__name__)


def keep_by_share(heads: Sequence[Float64], neurons: Sequence[Float64], keep: float) -> list[KeptUnits]:
    """Keeps the most important share of the heads of all layers together, and of the blocks of neurons.

    At least one head and one block stay in each layer.

    Args:
        heads: importance, one array per layer, `(heads,)`; empty if heads cannot be removed.
        neurons: importance, one array per layer, `(neurons,)`.
        keep: the share.
    """
    blocks = [block_importance(layer) for layer in neurons]
    return _kept_units(heads, neurons, [*counts_by_share(heads, keep), *counts_by_share(blocks, keep)])


def keep_within_budget(
    heads: Sequence[Float64], neurons: Sequence[Float64], table: LatencyTable, budget: float
) -> list[KeptUnits]:
    """Keeps the heads and neurons with the highest total importance within a time budget.

    Args:
        heads: importance, one array per layer, `(heads,)`; empty if heads cannot be removed.
        neurons: importance, one array per layer, `(neurons,)`.
        table: the cost of heads and blocks.
        budget: predicted time of the model, as a share of the unpruned model's time.
    """
    importance = [*heads, *(block_importance(layer) for layer in neurons)]
    costs = [table.attention] * len(heads) + [table.feed_forward] * len(neurons)
    return _kept_units(heads, neurons, counts_by_time(importance, costs, budget - table.fixed))


def _kept_units(heads: Sequence[Float64], neurons: Sequence[Float64], counts: Sequence[int]) -> list[KeptUnits]:
    """Returns the indices of the units that each layer keeps.

    Args:
        heads: importance, one array per layer.
        neurons: importance, one array per layer.
        counts: how many heads each layer keeps, and then how many blocks of neurons each layer keeps.
    """
    head_counts, block_counts = counts[: len(heads)], counts[len(heads) :]
    return [
        KeptUnits(most_important(layer_heads, count), most_important(layer_neurons, blocks * BLOCK_NEURONS))
        for layer_heads, layer_neurons, count, blocks in zip(heads, neurons, head_counts, block_counts, strict=True)
    ]


def keep_for_speedup(
    model: torch.nn.Module,
    heads: Sequence[Float64],
    neurons: Sequence[Float64],
    table: LatencyTable,
    measure: Measure,
    speedup: float,
) -> tuple[list[KeptUnits], dict[str, Any]]:
    """Keeps the most important heads and neurons with which a model is faster than the unpruned model by a factor.

    The table predicts the time of a choice, and a measurement checks it. If the measured time is too long, or shorter
    than `MIN_TIME_USE` of the wanted time, the budget is corrected by the ratio of the two times, in small steps, and
    the choice is repeated.

    Args:
        model: the model to prune, which may have been pruned before.
        heads: importance, one array per layer, `(heads,)`; empty if heads cannot be removed.
        neurons: importance, one array per layer, `(neurons,)`.
        table: the cost of heads and blocks.
        measure: times a model.
        speedup: the factor: the unpruned model's time divided by that of the pruned model.

    Returns:
        The units to keep, and for the manifest the speedup wanted, predicted and measured. Among the tries that are
        fast enough, the slowest is returned, because it keeps the most; if there is none, the fastest try is.
    """
    tries = list[tuple[list[KeptUnits], Metric]]()  # units and measured time; times are shares of the unpruned model's
    wanted_time = 1 / speedup
    budget = TARGET_TIME_USE * wanted_time
    while len(tries) < MAX_MEASUREMENTS:
        kept = keep_within_budget(heads, neurons, table, budget)
        time = measure(surgery.shrunk(model, kept))
        tries.append((kept, time))
        if MIN_TIME_USE * wanted_time <= time.value <= wanted_time:
            break
        budget *= np.clip(TARGET_TIME_USE * wanted_time / time.value, 1 - MAX_BUDGET_CHANGE, 1 + MAX_BUDGET_CHANGE)
    fast_enough = [(kept, time) for kept, time in tries if time.value <= wanted_time]
    if fast_enough:
        kept, time = max(fast_enough, key=lambda entry: entry[1].value)
    else:
        kept, time = min(tries, key=lambda entry: entry[1].value)
    measured = Metric(value=1 / time.value, low=1 / time.high, high=1 / time.low)
    predicted = 1 / predict_time(table, [surgery.Shape(len(layer.heads), len(layer.neurons)) for layer in kept])
    if measured.high - measured.low > MAX_INTERVAL_SHARE * measured.value:
        log.warning("other processes disturbed the measurement; run it again on an idle machine")
    log.info("speedup: %.3g wanted, %.3g predicted, %.3g measured", speedup, predicted, measured.value)
    return kept, {"speedup": {"wanted": speedup, "predicted": predicted, "measured": measured.model_dump()}}
