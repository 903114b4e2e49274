"""The time of a model in memory, against that of the whole model it came from.

Both go the way to the engine that the stages after pruning go: saved, exported, quantized, loaded. They run in
turn, on batches of the training rows' own lengths, so that a machine whose speed drifts treats both the same.
What a call waited for a core that other processes held is not counted: it would favour the shorter one, which
more often ends before it is interrupted.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from deploykit import architectures, checkpoint, engines, hardware, quantizers, tracing
from deploykit.artifact import GRAPH, Metric
from deploykit.engines import Engine
from deploykit.errors import ModelError
from deploykit.execution import Execution
from deploykit.fitting import Problem
from deploykit.recipe import ExportSection
from deploykit.tokenizer import Batch

Measure = Callable[[torch.nn.Module], Metric]  # the time of a model as a share of the whole one's
BATCHES = (1, 8)  # rows of about the median length
SECONDS, ROUNDS = 2.0, (9, 99)  # spent on each batch, and the fewest and most rounds in them
RESAMPLES = 1000


def meter(whole: torch.nn.Module, problem: Problem, execution: Execution, quantizer: str, work: Path) -> Measure:
    """Returns a function that times models; what was measured before a kill is not measured again.

    A run that goes on must choose the shapes that it had chosen: its checkpoints have them.

    Args:
        whole: its own time is the unit.
        problem: its training rows say which lengths are typical.
        execution: how the graphs are run.
        quantizer: a name of the folder `quantizers`, or `"none"`.
        work: directory for the notes.
    """
    batches, notes = typical(problem), work / "measured.json"
    known = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    reference = _opened(whole, problem, execution, quantizer)

    def measure(model: torch.nn.Module) -> Metric:
        name = " ".join(f"{size.heads}x{size.neurons}" for size in architectures.shapes(model))
        if name not in known:
            known[name] = share(_opened(model, problem, execution, quantizer), reference, batches).model_dump()
            work.mkdir(parents=True, exist_ok=True)
            fresh = notes.with_suffix(".new")
            fresh.write_text(json.dumps(known), encoding="utf-8")
            fresh.replace(notes)
        return Metric(**known[name])

    return measure


def typical(problem: Problem) -> list[Batch]:
    """Returns batches of training rows of about the median length, as many rows in each as `BATCHES` says."""
    found = sorted((row.encoding for row in problem.train), key=len)
    return [problem.tokenizer.collate(found[(len(found) - 1) // 2 :][:size]) for size in BATCHES]


def _opened(model: torch.nn.Module, problem: Problem, execution: Execution, quantizer: str) -> Engine:
    with tempfile.TemporaryDirectory() as name:
        folder, graph = Path(name), Path(name) / GRAPH
        checkpoint.save(model, folder)
        tracing.write_graph(checkpoint.load(folder), folder, problem.task.OPTIMUM_TASK, ExportSection().opset)
        if not graph.is_file():
            raise ModelError(
                "the time of a model is measured on one graph, and this one is exported as several."
                " Set `keep` in place of `speedup` or `max_drop`."
            )
        if quantizer != "none":
            method, graph = quantizers.load(quantizer), folder / "quantized.onnx"
            method.quantize(folder / GRAPH, method.Options(), graph)
        return engines.load(execution.engine).load(graph, execution)


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


def _ratios(one: Engine, whole: Engine, batch: Batch) -> npt.NDArray[np.float64]:
    for engine in (one, whole):  # a first call builds caches
        engine.run(batch)
    found, spent = list[float](), 0.0
    while len(found) < ROUNDS[0] or (len(found) < ROUNDS[1] and spent < SECONDS):
        times = {engine: _seconds(engine, batch) for engine in ((one, whole) if len(found) % 2 else (whole, one))}
        found.append(times[one] / times[whole])
        spent += sum(times.values())
    return np.array(found)


def _seconds(engine: Engine, batch: Batch) -> float:
    waited, start = hardware.waited(), time.perf_counter()
    engine.run(batch)
    return max(time.perf_counter() - start - (hardware.waited() - waited), 1e-9)
