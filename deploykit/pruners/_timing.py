"""The time of a model in memory, against that of the whole model it came from.

Both go the way to the engine that the stages after pruning go: saved, exported, quantized, loaded. They run in
turn, on batches of the training rows' own lengths, so that a machine whose speed drifts treats both the same.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from deploykit import architectures, checkpoint, engines, quantizers, timing, tracing
from deploykit.artifact import GRAPH, Metric
from deploykit.engines import Engine
from deploykit.errors import ModelError
from deploykit.execution import Execution
from deploykit.fitting import Problem
from deploykit.recipe import ExportSection
from deploykit.tokenizer import Batch

Measure = Callable[[torch.nn.Module], Metric]  # the time of a model as a share of the whole one's
BATCHES = (1, 8)  # rows of about the median length
SECONDS = 3.0  # spent on each batch
RESAMPLES = 1000


def meter(whole: torch.nn.Module, problem: Problem, execution: Execution, quantizer: str, work: Path) -> Measure:
    """Returns a function that times models; what was measured before a kill is not measured again.

    A run that goes on must choose the shapes that it had chosen: its checkpoints have them.

    Args:
        whole: its own time is the unit.
        problem: its training rows say which lengths are typical.
        execution: how the graphs are run.
        quantizer: a name of the folder `quantizers`.
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
        method, quantized = quantizers.load(quantizer), folder / "quantized.onnx"
        method.quantize(graph, method.Options(), quantized)
        return engines.load(execution.engine).load(quantized, execution)


def share(one: Engine, whole: Engine, batches: Sequence[Batch]) -> Metric:
    """Times two engines in turn: the median of the ratios on each batch, averaged over the batches.

    The mean of shares, unlike that of speedups, is a sum over layers.

    Returns:
        The share with its 95 % bootstrap interval.
    """
    ratios = []
    for batch in batches:
        times = timing.in_turn({"one": partial(one.run, batch), "whole": partial(whole.run, batch)}, SECONDS)
        ratios.append(times["one"] / times["whole"])
    random = np.random.default_rng(0)
    drawn = [np.median(random.choice(found, (RESAMPLES, len(found))), axis=1) for found in ratios]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return Metric(value=float(np.mean([np.median(found) for found in ratios])), low=float(low), high=float(high))
