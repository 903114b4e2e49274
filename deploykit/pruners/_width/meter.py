"""Measures the time of a pruned model in memory as a share of the whole model's time.

Both models are exported, quantized and run as later stages would do it. They run alternately on training rows, so that
a drift of the machine's speed affects both alike.
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
from deploykit.evaluation.workload import LENGTH_QUANTILES, MIXED_TEXTS
from deploykit.graphs import export
from deploykit.inference.predictor import group_by_length, pad_for_engine
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.problem import Problem
from deploykit.recipe import ExportSection
from deploykit.tokenizer import Batch, Features

Objective = Literal["latency", "throughput"]
Measure = Callable[[torch.nn.Module], Metric]  # returns the time of a model as a share of the whole model's
BATCH_TOKENS = (256, 512, 1024, 2048)  # padded tokens per batch to try; the whole model's fastest is used for both
TIMING_S = 3.0  # spent on each workload


def relative_timer(
    whole: torch.nn.Module,
    problem: Problem,
    execution: Execution,
    quantizer: str,
    work: Path,
    objective: Objective = "latency",
) -> Measure:
    """Returns a function that times models relative to `whole` and stores each result in `work`.

    A run that is resumed reads the stored times, so that it chooses the same sizes: its checkpoints have those.

    Args:
        whole: the model whose time is 1.
        problem: its training rows are the input.
        execution: how the graphs are run.
        quantizer: name of a quantizer.
        work: folder in which the times are stored.
        objective: `latency` for rows one at a time, `throughput` for rows of all lengths, sorted and batched.
    """
    file = work / "measured.json"
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    reference = _opened(whole, problem, execution, quantizer)
    workloads = single_rows(problem, reference) if objective == "latency" else [mixed_rows(problem, reference)]

    def measure(model: torch.nn.Module) -> Metric:
        name = " ".join(f"{size.heads}x{size.neurons}" for size in surgery.shapes(model))
        if name not in measured:
            engine = _opened(model, problem, execution, quantizer)
            measured[name] = relative_time(engine, reference, workloads).model_dump()
            work.mkdir(parents=True, exist_ok=True)
            atomic.write_text(file, json.dumps(measured))
        return Metric(**measured[name])

    return measure


def single_rows(problem: Problem, whole: Engine) -> list[list[Batch]]:
    """Returns workloads of one training row each, at typical lengths."""
    rows = sorted((row.features for row in problem.train), key=len)
    return [[pad_for_engine([rows[int(at * (len(rows) - 1))]], problem.tokenizer, whole)] for at in LENGTH_QUANTILES]


def mixed_rows(problem: Problem, whole: Engine) -> list[Batch]:
    """Returns training rows of all lengths, in batches of the size that the whole model runs fastest."""
    order = np.random.default_rng(problem.seed).permutation(len(problem.train))[:MIXED_TEXTS]
    rows = [problem.train[index].features for index in order]
    workloads = {tokens: _batched(problem, rows, tokens, whole) for tokens in BATCH_TOKENS}
    calls = {tokens: partial(_run, whole, workload) for tokens, workload in workloads.items()}
    times = timing.in_turn(calls, TIMING_S, burst=1)
    return workloads[min(times, key=lambda tokens: float(np.median(times[tokens])))]


def _batched(problem: Problem, rows: Sequence[Features], tokens: int, engine: Engine) -> list[Batch]:
    groups = group_by_length([len(row) for row in rows], tokens, engine.shape)
    return [pad_for_engine([rows[index] for index in group], problem.tokenizer, engine) for group in groups]


def _opened(model: torch.nn.Module, problem: Problem, execution: Execution, quantizer: str) -> Engine:
    with tempfile.TemporaryDirectory() as name:
        folder, graph = Path(name), Path(name) / GRAPH
        checkpoint.save(model, folder)
        task, opset = problem.task, ExportSection().opset
        export.write_graph(checkpoint.load(folder), folder, task.OPTIMUM_TASK, opset, task.OUTPUTS)
        if not graph.is_file():
            raise ModelError(
                "a speedup is measured on one graph, but this model is exported as several."
                " Set `keep` in place of `speedup` or `max_drop`."
            )
        method, quantized = quantizers.load(quantizer), folder / "quantized.onnx"
        method.quantize(graph, method.Options(), quantized)
        return engines.load(execution.engine).load(quantized, execution)


def relative_time(pruned: Engine, whole: Engine, workloads: Sequence[Sequence[Batch]]) -> Metric:
    """Times two engines alternately: the median of their time ratios on each workload, averaged over the workloads.

    Shares of time are averaged, and not speedups, because shares are sums over layers, as in the latency table. Each
    workload is a sequence of batches that are timed together. Returns the share with its 95 % bootstrap interval.
    """
    ratios = []
    for workload in workloads:
        calls = {"pruned": partial(_run, pruned, workload), "whole": partial(_run, whole, workload)}
        times = timing.in_turn(calls, TIMING_S, burst=timing.BURST if len(workload) == 1 else 1)
        ratios.append(times["pruned"] / times["whole"])
    random = np.random.default_rng(0)
    medians = [bootstrap.resample(ratio, bootstrap.median, random) for ratio in ratios]
    low, high = bootstrap.interval(np.mean(medians, axis=0))
    return Metric(value=float(np.mean([np.median(ratio) for ratio in ratios])), low=low, high=high)


def _run(engine: Engine, workload: Sequence[Batch]) -> None:
    for batch in workload:
        engine.run(batch)
