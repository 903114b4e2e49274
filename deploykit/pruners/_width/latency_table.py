"""The time that attention heads and feed-forward neurons take, measured on a few narrowed models.

A narrowed model has at most a certain number of heads, or of blocks of neurons, in every layer. The difference between
the times of two such models is the cost of the units that only one of them has (Kurtic et al., ZipLM, 2023, section
3.2). Costs between measured numbers of units are interpolated. All times are shares of the unpruned model's time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from sklearn.isotonic import isotonic_regression
from tqdm import tqdm

from deploykit.modeling import surgery
from deploykit.modeling.surgery import Shape
from deploykit.pruners._width.meter import Measure
from deploykit.pruners._width.ranking import BLOCK_NEURONS, Float64

MEASURED_COUNTS = 5  # how many numbers of heads, and of blocks, are measured; each means exporting and timing a model


@dataclass(frozen=True)
class LatencyTable:
    """The time of the units of a layer, as shares of the unpruned model's time.

    Attributes:
        attention: cost of 0, 1, ... heads of a layer beyond its first head; non-decreasing.
        feed_forward: cost of 0, 1, ... blocks of neurons of a layer beyond its first block; non-decreasing.
        fixed: the time that pruning cannot remove: of the embeddings, the task head, and one head and one block of each
            layer.
    """

    attention: Float64
    feed_forward: Float64
    fixed: float


def predict_time(table: LatencyTable, sizes: Sequence[Shape]) -> float:
    """Predicts the time of a model whose layers have these sizes."""
    attention = sum(table.attention[size.heads] for size in sizes)
    return float(table.fixed + attention + sum(table.feed_forward[block_count(size.neurons)] for size in sizes))


def block_count(neurons: int) -> int:
    """Returns the number of blocks that hold these neurons; the last block may be incomplete."""
    return math.ceil(neurons / BLOCK_NEURONS)


def measure_latency_table(model: torch.nn.Module, measure: Measure) -> LatencyTable:
    """Measures the cost of heads and of blocks of neurons.

    Args:
        model: the unpruned model. Its time is 1 by definition, and the table predicts 1 for it.
        measure: times a narrower copy.
    """
    shapes = surgery.shapes(model)
    heads, blocks = [shape.heads for shape in shapes], [block_count(shape.neurons) for shape in shapes]
    few_heads = [
        [replace(shape, heads=min(shape.heads, count)) for shape in shapes] for count in counts_to_measure(heads)[:-1]
    ]
    neuron_limits = [count * BLOCK_NEURONS for count in counts_to_measure(blocks)[:-1]]
    few_neurons = [[replace(shape, neurons=min(shape.neurons, limit)) for shape in shapes] for limit in neuron_limits]
    narrowed = tqdm([*few_heads, *few_neurons], desc="latency table", unit="graph", disable=None)
    times = [measure(surgery.resized(model, narrowed_shapes)).value for narrowed_shapes in narrowed]
    head_times, neuron_times = times[: len(few_heads)], times[len(few_heads) :]
    table = LatencyTable(unit_costs(heads, head_times), unit_costs(blocks, neuron_times), fixed=0.0)
    return replace(table, fixed=1 - predict_time(table, shapes))


def unit_costs(unit_counts: Sequence[int], times: Sequence[float]) -> Float64:
    """Returns the cost of 0, 1, ... units of a layer beyond its first unit, `(units + 1,)`.

    Args:
        unit_counts: number of units in each layer of the unpruned model.
        times: of narrowed models, one for each of `counts_to_measure(unit_counts)` except for the last, which is the
            unpruned model's; a narrowed model has at most so many units in each layer.
    """
    counts = counts_to_measure(unit_counts)
    # By noise, a model with fewer units may seem slower. The regression makes the times non-decreasing.
    rising_times = isotonic_regression(np.minimum([*times, 1.0], 1.0))
    totals = [np.minimum(unit_counts, count).sum() for count in counts]  # units of a narrowed model in all layers
    cost_per_unit = np.diff(rising_times) / np.diff(totals)
    costs_at_counts = np.cumsum([0.0, *(cost_per_unit * np.diff(counts))])
    costs: Float64 = np.interp(np.arange(max(unit_counts) + 1), counts, costs_at_counts)
    return costs


def counts_to_measure(unit_counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns the numbers of units per layer to measure, ascending, from one to those of the widest layer.

    Args:
        unit_counts: number of units in each layer; if all are 0, the only number to measure is 0.
    """
    widest = max(unit_counts)
    return np.unique(np.linspace(min(1, widest), widest, MEASURED_COUNTS).round().astype(np.int64))
