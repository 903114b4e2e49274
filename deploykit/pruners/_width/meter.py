"""Measures the time of a pruned model in memory as a share of the unpruned model's time.

Both models are exported, quantized and run in the same way as in later stages. They run in turn on training rows, so
that changes of the machine's speed affect both alike.
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
Measure = Callable[[torch.nn.Module], Metric]  # returns the time of a model as a share of the unpruned model's
BATCH_TOKENS_TO_TRY = (256, 512, 1024, 2048)  # most padded tokens of a batch; the unpruned model's fastest is taken
TIMING_S = 3.0  # seconds for timing both models on one workload


def relative_timer(
    unpruned: torch.nn.Module,
    problem: Problem,
    execution: Execution,
    quantizer: str,
    work: Path,
    objective: Objective = "latency",
) -> Measure:
    """Returns a function that times models relative to `unpruned` and stores each result in `work`.

    A run that was killed and continues reads the stored times. So it chooses the same sizes again, which its
    checkpoints have.

    Args:
        unpruned: the model whose time is 1.
        problem: its training rows are the input.
        execution: how the graphs are run.
        quantizer: name of the quantizer of the graphs.
        work: folder in which the times are stored.
        objective: `latency` for rows one at a time, `throughput` for rows of all lengths, sorted and batched.
    """
    file = work / "measured.json"
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    reference = _open_engine(unpruned, problem, execution, quantizer)
    workloads = (
        single_row_workloads(problem, reference) if objective == "latency" else [mixed_workload(problem, reference)]
    )

    def measure(model: torch.nn.Module) -> Metric:
        name = " ".join(f"{size.heads}x{size.neurons}" for size in surgery.shapes(model))
        if name not in measured:
            engine = _open_engine(model, problem, execution, quantizer)
            measured[name] = relative_time(engine, reference, workloads).model_dump()
            work.mkdir(parents=True, exist_ok=True)
            atomic.write_text(file, json.dumps(measured))
        return Metric(**measured[name])

    return measure


def single_row_workloads(problem: Problem, unpruned: Engine) -> list[list[Batch]]:
    """Returns workloads of one training row each, at the quantiles `LENGTH_QUANTILES` of their length."""
    rows = sorted((row.features for row in problem.train), key=len)
    chosen = [rows[int(quantile * (len(rows) - 1))] for quantile in LENGTH_QUANTILES]
    return [[pad_for_engine([row], problem.tokenizer, unpruned)] for row in chosen]


def mixed_workload(problem: Problem, unpruned: Engine) -> list[Batch]:
    """Returns training rows of all lengths, in batches of the size with which the unpruned model is fastest."""
    order = np.random.default_rng(problem.seed).permutation(len(problem.train))[:MIXED_TEXTS]
    rows = [problem.train[index].features for index in order]
    workloads = {tokens: _make_batches(problem, rows, tokens, unpruned) for tokens in BATCH_TOKENS_TO_TRY}
    calls = {tokens: partial(_run, unpruned, workload) for tokens, workload in workloads.items()}
    times = timing.time_in_turn(calls, TIMING_S, burst_calls=1)
    return workloads[min(times, key=lambda tokens: float(np.median(times[tokens])))]


def _make_batches(problem: Problem, rows: Sequence[Features], batch_tokens: int, engine: Engine) -> list[Batch]:
    """Returns padded batches of at most `batch_tokens` tokens."""
    groups = group_by_length([len(row) for row in rows], batch_tokens, engine.shape)
    return [pad_for_engine([rows[index] for index in group], problem.tokenizer, engine) for group in groups]


def _open_engine(model: torch.nn.Module, problem: Problem, execution: Execution, quantizer: str) -> Engine:
    """Exports and quantizes a model, and opens its graph; raises a ModelError if it has several graphs."""
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


def relative_time(pruned: Engine, unpruned: Engine, workloads: Sequence[Sequence[Batch]]) -> Metric:
    """Returns the time of a pruned model as a share of the unpruned model's time, with its 95 % bootstrap interval.

    It is the median of the ratios of single timings on each workload, averaged over the workloads. Shares of time are
    averaged, and not speedups, because shares are sums over layers, as in the latency table.

    Args:
        pruned: the engine of the pruned model.
        unpruned: the engine of the unpruned model.
        workloads: each is a sequence of batches that are timed together.
    """
    ratios = []
    for workload in workloads:
        calls = {"pruned": partial(_run, pruned, workload), "unpruned": partial(_run, unpruned, workload)}
        times = timing.time_in_turn(calls, TIMING_S, burst_calls=timing.BURST_CALLS if len(workload) == 1 else 1)
        ratios.append(times["pruned"] / times["unpruned"])
    random = np.random.default_rng(0)
    medians = [bootstrap.resample(ratio, bootstrap.median, random) for ratio in ratios]
    low, high = bootstrap.interval(np.mean(medians, axis=0))
    return Metric(value=float(np.mean([np.median(ratio) for ratio in ratios])), low=low, high=high)


def _run(engine: Engine, workload: Sequence[Batch]) -> None:
    """Runs all batches of a workload once."""
    for batch in workload:
        engine.run(batch)
