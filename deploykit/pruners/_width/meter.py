"""The time of a model in memory, against that of the whole model it came from.

Both go the way to the engine that the stages after pruning go: saved, exported, quantized, loaded. They run in
turn, on training rows, so that a machine whose speed drifts treats both the same.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from deploykit import engines, quantizers
from deploykit.artifact import GRAPH, Metric, atomic
from deploykit.artifact.execution import Execution
from deploykit.engines import Engine
from deploykit.errors import ModelError
from deploykit.evaluation import bootstrap, timing
from deploykit.graphs import export
from deploykit.inference.predictor import batches, padded
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.finetuning import Problem
from deploykit.recipe import ExportSection
from deploykit.tokenizer import Batch, Encoding

Objective = Literal["latency", "throughput"]
Measure = Callable[[torch.nn.Module], Metric]  # the time of a model as a share of the whole one's
BUDGETS = (256, 512, 1024, 2048)  # padded tokens of a batch, of which the whole model's best is taken
SECONDS = 3.0  # spent on each part of the work


def meter(
    whole: torch.nn.Module,
    problem: Problem,
    execution: Execution,
    quantizer: str,
    work: Path,
    objective: Objective = "latency",
) -> Measure:
    """Returns a function that times models; what was measured before a kill is not measured again.

    A run that goes on must choose the shapes that it had chosen: its checkpoints have them.

    Args:
        whole: its own time is the unit.
        problem: its training rows are what is run.
        execution: how the graphs are run.
        quantizer: a name of the folder `quantizers`.
        work: directory for the notes.
        objective: `latency` for rows one at a time, `throughput` for rows of all lengths, sorted and batched.
    """
    notes = work / "measured.json"
    known = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    reference = _opened(whole, problem, execution, quantizer)
    parts = singles(problem, reference) if objective == "latency" else [mixed(problem, reference)]

    def measure(model: torch.nn.Module) -> Metric:
        name = " ".join(f"{size.heads}x{size.neurons}" for size in surgery.shapes(model))
        if name not in known:
            known[name] = share(_opened(model, problem, execution, quantizer), reference, parts).model_dump()
            work.mkdir(parents=True, exist_ok=True)
            atomic.write_text(notes, json.dumps(known))
        return Metric(**known[name])

    return measure


def singles(problem: Problem, whole: Engine) -> list[list[Batch]]:
    """Returns single training rows of the lengths that are typical."""
    found = sorted((row.encoding for row in problem.train), key=len)
    return [[padded([found[int(at * (len(found) - 1))]], problem.tokenizer, whole)] for at in timing.QUANTILES]


def mixed(problem: Problem, whole: Engine) -> list[Batch]:
    """Returns training rows of all lengths, batched in the way that the whole model runs best."""
    order = np.random.default_rng(problem.seed).permutation(len(problem.train))[: timing.MIXED]
    rows = [problem.train[index].encoding for index in order]
    ways = {budget: _batched(problem, rows, budget, whole) for budget in BUDGETS}
    calls = {budget: partial(_run, whole, found) for budget, found in ways.items()}
    times = timing.in_turn(calls, SECONDS, burst=1)
    return ways[min(times, key=lambda budget: float(np.median(times[budget])))]


def _batched(problem: Problem, rows: Sequence[Encoding], budget: int, engine: Engine) -> list[Batch]:
    groups = batches([len(found) for found in rows], budget, engine.shape)
    return [padded([rows[index] for index in group], problem.tokenizer, engine) for group in groups]


def _opened(model: torch.nn.Module, problem: Problem, execution: Execution, quantizer: str) -> Engine:
    with tempfile.TemporaryDirectory() as name:
        folder, graph = Path(name), Path(name) / GRAPH
        checkpoint.save(model, folder)
        export.write_graph(checkpoint.load(folder), folder, problem.task.OPTIMUM_TASK, ExportSection().opset)
        if not graph.is_file():
            raise ModelError(
                "the time of a model is measured on one graph, and this one is exported as several."
                " Set `keep` in place of `speedup` or `max_drop`."
            )
        method, quantized = quantizers.load(quantizer), folder / "quantized.onnx"
        method.quantize(graph, method.Options(), quantized)
        return engines.load(execution.engine).load(quantized, execution)


def share(one: Engine, whole: Engine, parts: Sequence[Sequence[Batch]]) -> Metric:
    """Times two engines in turn: the median of the ratios on each part, averaged over the parts.

    The mean of shares, unlike that of speedups, is a sum over layers.

    Args:
        one: the engine.
        whole: its time is the unit.
        parts: batches that are timed together.

    Returns:
        The share with its 95 % bootstrap interval.
    """
    ratios = []
    for part in parts:
        calls = {"one": partial(_run, one, part), "whole": partial(_run, whole, part)}
        times = timing.in_turn(calls, SECONDS, burst=timing.BURST if len(part) == 1 else 1)
        ratios.append(times["one"] / times["whole"])
    random = np.random.default_rng(0)
    drawn = [bootstrap.of_values(found, bootstrap.median, random) for found in ratios]
    low, high = bootstrap.interval(np.mean(drawn, axis=0))
    return Metric(value=float(np.mean([np.median(found) for found in ratios])), low=low, high=high)


def _run(engine: Engine, part: Sequence[Batch]) -> None:
    for batch in part:
        engine.run(batch)
