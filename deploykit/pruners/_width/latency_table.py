"""The latency cost of attention heads and feed-forward neurons, measured on a few uniformly narrowed models.

A narrowed model keeps at most so many heads, or blocks of neurons, in every layer; the difference between the times of
two such models is the cost of the removed units (Kurtic et al., ZipLM, 2023, section 3.2). Costs between measured sizes
are interpolated. All times are shares of the whole model's time.
"""

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

MEASURED_SIZES = 5  # of heads, and of blocks of neurons; each means exporting and timing a model


@dataclass(frozen=True)
class LatencyTable:
    """The non-decreasing cost of the units of one layer, beyond its first head and first block of neurons.

    `attention` has an entry for 0, 1, ... heads and `feed_forward` one for 0, 1, ... blocks. `fixed` is the time that
    pruning cannot remove: the embeddings, the task head, and one head and one block of every layer.
    """

    attention: Float64
    feed_forward: Float64
    fixed: float


def predicted_time(table: LatencyTable, sizes: Sequence[Shape]) -> float:
    """Predicts the time of a model whose layers have these sizes."""
    attention = sum(table.attention[size.heads] for size in sizes)
    return float(table.fixed + attention + sum(table.feed_forward[blocks(size.neurons)] for size in sizes))


def blocks(neurons: int) -> int:
    """Returns the number of blocks that hold these neurons; the last block may be incomplete."""
    return -(-neurons // BLOCK_NEURONS)


def tabulate(model: torch.nn.Module, measure: Measure) -> LatencyTable:
    """Measures the cost of heads and blocks.

    Args:
        model: the whole model; its time is 1 by definition, and the table predicts 1 for its sizes.
        measure: times a narrower copy.
    """
    sizes = surgery.shapes(model)
    heads, widths = [size.heads for size in sizes], [blocks(size.neurons) for size in sizes]
    few_heads = [[replace(size, heads=min(size.heads, n)) for size in sizes] for n in measured_counts(heads)[:-1]]
    limits = [n * BLOCK_NEURONS for n in measured_counts(widths)[:-1]]
    few_neurons = [[replace(size, neurons=min(size.neurons, limit)) for size in sizes] for limit in limits]
    copies = tqdm([*few_heads, *few_neurons], desc="latency table", unit="graph", disable=None)
    times = [measure(surgery.resized(model, copy)).value for copy in copies]
    costs = unit_costs(heads, times[: len(few_heads)]), unit_costs(widths, times[len(few_heads) :])
    table = LatencyTable(*costs, fixed=0.0)
    return replace(table, fixed=1 - predicted_time(table, sizes))


def unit_costs(sizes: Sequence[int], times: Sequence[float]) -> Float64:
    """Returns the cost of 0, 1, ... units of one layer beyond its first unit, `(units + 1,)`.

    Args:
        sizes: number of units of each layer of the whole model.
        times: of models with at most as many units per layer as each of `measured_counts(sizes)`, without the last.
    """
    counts = measured_counts(sizes)
    rising = isotonic_regression(np.minimum([*times, 1.0], 1.0))  # fewer units never take longer, except by noise
    removed = np.diff([np.minimum(sizes, count).sum() for count in counts])  # units in all layers together
    steps = np.diff(rising) / removed * np.diff(counts)
    costs: Float64 = np.interp(np.arange(max(sizes) + 1), counts, np.cumsum([0.0, *steps]))
    return costs


def measured_counts(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns the numbers of units to measure, ascending: from one (or none, if there are none) to all."""
    return np.unique(np.linspace(min(1, max(sizes)), max(sizes), MEASURED_SIZES).round().astype(np.int64))
