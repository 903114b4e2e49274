"""What width costs in time: measured on this machine, with the engine and the precision that will serve.

A model is timed as a whole: saved, exported, quantized, and run in turn with the whole model on batches of the
training rows' own lengths. Its time is a share of the whole model's, so that a machine whose speed drifts
treats both the same. A table of what heads and neurons cost comes from a few copies of the model with narrower
layers (Kurtic et al., ZipLM, 2023, section 3.2), and is in the same shares. What was measured is written down:
a run that was killed chooses the same again.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


import numpy as np
import numpy.typing as npt
import torch
from sklearn.isotonic import isotonic_regression
from tqdm import tqdm

from deploykit import architectures, checkpoint, engines, hardware, quantizers, tracing
from deploykit.architectures import Shape
from deploykit.artifact import CONFIG, GRAPH, Metric
from deploykit.engines import Engine
from deploykit.fitting import Problem
from deploykit.recipe import ExportSection
from deploykit.tokenizer import Batch

Float64 = npt.NDArray[np.float64]
Measure = Callable[[torch.nn.Module], Metric]  # the time of a model as a share of the whole one's

BLOCK = 64  # neurons are removed in blocks that fill a tile of the matrix units
SIZES = 5  # of heads, and of neurons, that are measured; between them costs are interpolated
BATCHES = (1, 8)  # of rows of median length
SECONDS, ROUNDS = 2.0, (9, 99)  # that a comparison takes on each batch, and its fewest and most rounds
RESAMPLES = 1000


@dataclass(frozen=True)
class Table:
    """What a layer's parts cost, in shares of the whole model's time.

    `attention` is the cost of 0, 1, ... heads and `feed_forward` that of 0, 1, ... blocks of neurons, both
    above the cost of one, never falling; `fixed` is all that no choice changes.
    """

    attention: Float64
    feed_forward: Float64
    fixed: float


def time_of(table: Table, sizes: Sequence[Shape]) -> float:
    """Predicts the time of a model with layers of these sizes, as a share of the whole one's."""
    attention = sum(table.attention[size.heads] for size in sizes)
    return float(table.fixed + attention + sum(table.feed_forward[blocks(size.neurons)] for size in sizes))


def blocks(neurons: int) -> int:
    """Returns how many blocks hold these neurons; the last may be a part of one."""
    return -(-neurons // BLOCK)


def tabulate(model: torch.nn.Module, measure: Measure) -> Table:
    """Measures what heads and blocks of neurons cost, layers of one width at a time.

    Args:
        model: the whole one, whose time is 1 by definition.
        measure: times a narrower copy.
    """
    sizes = architectures.shapes(model)
    heads, widths = [size.heads for size in sizes], [blocks(size.neurons) for size in sizes]
    narrow = [[Shape(min(count, size.heads), size.neurons) for size in sizes] for count in _counts(heads)[:-1]]
    thin = [[Shape(size.heads, min(count * BLOCK, size.neurons)) for size in sizes] for count in _counts(widths)[:-1]]
    copies = tqdm([*narrow, *thin], desc="latency table", unit="graph", disable=None)
    times = [measure(architectures.resized(model, copy)).value for copy in copies]
    attention, feed_forward = prices(heads, times[: len(narrow)]), prices(widths, times[len(narrow) :])
    return Table(attention, feed_forward, 1 - time_of(Table(attention, feed_forward, 0.0), sizes))


def prices(sizes: Sequence[int], times: Sequence[float]) -> Float64:
    """Returns what 0, 1, ... units of one layer cost above one unit, `(units + 1,)`.

    Args:
        sizes: units of each layer of the whole model.
        times: of the model with at most as many units in each layer as each of `_counts(sizes)` but the last.
    """
    counts = _counts(sizes)
    rising = isotonic_regression(np.minimum([*times, 1.0], 1.0))
    grown = np.diff([np.minimum(sizes, count).sum() for count in counts])  # units, of all layers together
    total = np.cumsum([0.0, *(np.diff(rising) / grown * np.diff(counts))])
    return np.interp(np.arange(max(sizes) + 1), counts, total)


def _counts(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns the numbers of units that are measured, from one to all, ascending."""
    return np.unique(np.linspace(1, max(sizes), SIZES).round().astype(np.int64))


def meter(whole: torch.nn.Module, problem: Problem, engine: str, quantizer: str, work: Path) -> Measure:
    """Returns a function that times models against the whole one; work done before a kill is not done again.

    Args:
        whole: its own time is the unit.
        problem: its training rows say which lengths are typical.
        engine: a name of the folder `engines`.
        quantizer: a name of the folder `quantizers`, or `"none"`.
        work: directory for what was measured.
    """
    batches, notes = typical(problem), work / "measured.json"
    known = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    reference = _opened(whole, problem, engine, quantizer)

    def measure(model: torch.nn.Module) -> Metric:
        name = " ".join(f"{size.heads}x{size.neurons}" for size in architectures.shapes(model))
        if name not in known:
            known[name] = share(_opened(model, problem, engine, quantizer), reference, batches).model_dump()
            work.mkdir(parents=True, exist_ok=True)
            fresh = notes.with_suffix(".new")
            fresh.write_text(json.dumps(known), encoding="utf-8")
            fresh.replace(notes)
        return Metric(**known[name])

    return measure


def typical(problem: Problem) -> list[Batch]:
    """Returns batches of `BATCHES` training rows of about the median length."""
    found = sorted((row.encoding for row in problem.train), key=len)
    middle = (len(found) - 1) // 2
    return [problem.tokenizer.collate(found[middle:][:size]) for size in BATCHES]


def _opened(model: torch.nn.Module, problem: Problem, engine: str, quantizer: str) -> Engine:
    """Takes a model the way to the engine: what is timed is what would serve."""
    with tempfile.TemporaryDirectory() as name:
        folder, graph = Path(name), Path(name) / GRAPH
        checkpoint.save(model, folder)
        tracing.write_graph(checkpoint.load(folder), folder, problem.task.OPTIMUM_TASK, ExportSection().opset)
        if quantizer != "none":
            method = quantizers.load(quantizer)
            graph = folder / "quantized.onnx"
            method.quantize(folder / GRAPH, method.Options(), graph)
        return engines.load(engine).load(graph, hardware.cpu_limit())


def share(one: Engine, whole: Engine, batches: Sequence[Batch]) -> Metric:
    """Times two engines in turn: the median of the ratios on each batch, averaged over the batches.

    The mean of shares, unlike that of speedups, is a sum over layers.

    Returns:
        The share with its 95 % bootstrap interval.
    """
    ratios = [_ratios(one, whole, batch) for batch in batches]
    random = np.random.default_rng(0)
    drawn = [np.median(random.choice(found, (RESAMPLES, len(found))), axis=1) for found in ratios]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return Metric(value=float(np.mean([np.median(found) for found in ratios])), low=float(low), high=float(high))


def _ratios(one: Engine, whole: Engine, batch: Batch) -> Float64:
    """Returns the ratio of the two engines' times in each round."""
    for engine in (one, whole):  # a first call builds caches
        engine.run(batch)
    found: list[float] = []
    spent = 0.0
    while len(found) < ROUNDS[0] or (len(found) < ROUNDS[1] and spent < SECONDS):
        times = {}
        for engine in (one, whole) if len(found) % 2 else (whole, one):
            start = time.perf_counter()
            engine.run(batch)
            times[engine] = time.perf_counter() - start
        found.append(times[one] / times[whole])
        spent += sum(times.values())
    return np.array(found)
