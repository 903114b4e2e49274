"""What heads and neurons cost in time, by a few copies of the model that are narrow all over.

Their times are measured (Kurtic et al., ZipLM, 2023, section 3.2), and the cost of what they lack follows by
difference; between them it is interpolated. All is in shares of the whole model's time.
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
from deploykit.pruners._width.ranking import BLOCK, Float64

SIZES = 5  # numbers of heads, and of blocks of neurons, that are measured


@dataclass(frozen=True)
class Table:
    """What the parts of one layer cost, above one head or one block of neurons, never falling.

    `attention` is for 0, 1, ... heads and `feed_forward` for 0, 1, ... blocks; `fixed` is all that no choice
    changes: the embeddings, the head of the task, and one head and one block of every layer.
    """

    attention: Float64
    feed_forward: Float64
    fixed: float


def time_of(table: Table, sizes: Sequence[Shape]) -> float:
    """Predicts the time of a model with layers of these sizes."""
    attention = sum(table.attention[size.heads] for size in sizes)
    return float(table.fixed + attention + sum(table.feed_forward[blocks(size.neurons)] for size in sizes))


def blocks(neurons: int) -> int:
    """Returns how many blocks hold these neurons; the last may be a part of one."""
    return -(-neurons // BLOCK)


def tabulate(model: torch.nn.Module, measure: Measure) -> Table:
    """Measures what heads and blocks cost.

    Args:
        model: the whole one, whose time is 1 by definition; so is that of its sizes in the table.
        measure: times a narrower copy.
    """
    sizes = surgery.shapes(model)
    heads, widths = [size.heads for size in sizes], [blocks(size.neurons) for size in sizes]
    narrow = [[replace(size, heads=min(size.heads, count)) for size in sizes] for count in counts(heads)[:-1]]
    thin = [[replace(size, neurons=min(size.neurons, n * BLOCK)) for size in sizes] for n in counts(widths)[:-1]]
    copies = tqdm([*narrow, *thin], desc="latency table", unit="graph", disable=None)
    times = [measure(surgery.resized(model, copy)).value for copy in copies]
    table = Table(prices(heads, times[: len(narrow)]), prices(widths, times[len(narrow) :]), 0.0)
    return replace(table, fixed=1 - time_of(table, sizes))


def prices(sizes: Sequence[int], times: Sequence[float]) -> Float64:
    """Returns what 0, 1, ... units of one layer cost above one unit, `(units + 1,)`.

    Args:
        sizes: units of each layer of the whole model.
        times: of the model whose layers have at most as many units as each of `counts(sizes)` but the last.
    """
    found = counts(sizes)
    rising = isotonic_regression(np.minimum([*times, 1.0], 1.0))
    removed = np.diff([np.minimum(sizes, count).sum() for count in found])  # from all layers together
    steps = np.diff(rising) / removed * np.diff(found)
    costs: Float64 = np.interp(np.arange(max(sizes) + 1), found, np.cumsum([0.0, *steps]))
    return costs


def counts(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns the numbers of units that are measured: from one, if there are any, to all, ascending."""
    return np.unique(np.linspace(min(1, max(sizes)), max(sizes), SIZES).round().astype(np.int64))
