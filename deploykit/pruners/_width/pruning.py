"""Prunes to a share, to a speedup, or as far as a loss of the metric allows."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch

from deploykit import hardware
from deploykit.artifact.execution import Execution
from deploykit.errors import ModelError
from deploykit.modeling import surgery
from deploykit.modeling.distillation import distill
from deploykit.modeling.importance import importance
from deploykit.modeling.problem import Problem, first_metric, first_rows_within, sample
from deploykit.modeling.refit import refit
from deploykit.modeling.surgery import KeptUnits, Shape
from deploykit.pruners import Pruned
from deploykit.pruners._width.latency_table import tabulate
from deploykit.pruners._width.meter import relative_timer
from deploykit.pruners._width.ranking import BLOCK_NEURONS, Float64
from deploykit.pruners._width.sizing import keep_for_speedup, keep_share
from deploykit.pruners.width import Options

SPEEDUP_PER_STEP = 1.2  # of a search
log = logging.getLogger(__name__)
# (model, target) to what to keep and the facts; the target is a share of the model, or a speedup over the unpruned one
Choose = Callable[[torch.nn.Module, float], tuple[list[KeptUnits], dict[str, Any]]]


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a narrower copy of the model, the sizes of its layers, and the measurements.

    Raises:
        ModelError: the speedup is out of reach, or such a model cannot be timed.
    """
    choose = _by_share(problem, options) if options.keep else _by_time(model, problem, options, work)
    if options.max_drop is not None:
        return _search(model, problem, options, options.max_drop, choose, work)
    small, facts, curve = model, dict[str, Any](), list[dict[str, Any]]()
    for step, target in enumerate(_targets(options), 1):
        kept, facts = choose(small, target)
        if options.speedup:
            _require_speedup(kept, facts["speedup"])
        small, step_curve = _shrink(small, kept, model, problem, options, work / f"step-{step}")
        curve += step_curve
    return Pruned(small, {"layers": _sizes(small), **facts, "curve": curve})


def _search(
    model: torch.nn.Module, problem: Problem, options: Options, max_drop: float, choose: Choose, work: Path
) -> Pruned:
    """Prunes the model further step by step, and returns the last one whose metric is high enough."""
    started, lowest = time.monotonic(), first_metric(model, problem) - max_drop
    best, facts, curve, tried = model, dict[str, Any](), list[dict[str, Any]](), list[dict[str, Any]]()
    for step in count(1):
        step_started = time.monotonic()
        kept, step_facts = choose(best, SPEEDUP_PER_STEP**step)
        if [Shape(len(keep.heads), len(keep.neurons)) for keep in kept] == surgery.shapes(best):
            break  # nothing is left to remove
        small, step_curve = _shrink(best, kept, model, problem, options, work / f"step-{step}")
        tried.append({**step_facts["speedup"], "metric": first_metric(small.eval(), problem)})
        log.info("search: %s", tried[-1])
        if tried[-1]["metric"] < lowest - 1e-9:
            break
        best, facts, curve = small, step_facts, [*curve, *step_curve]
        now = time.monotonic()
        if options.minutes and now - started + now - step_started > 60 * options.minutes:
            break
    return Pruned(best, {"layers": _sizes(best), **facts, "search": tried, "curve": curve})


def _targets(options: Options) -> list[float]:
    """Returns the target of each step: a share of the previous step's model, or a speedup over the unpruned model."""
    steps = range(1, options.steps + 1)
    if options.keep:
        return [options.keep ** (1 / options.steps) for _ in steps]
    return [(options.speedup or 1) ** (step / options.steps) for step in steps]


def _by_share(problem: Problem, options: Options) -> Choose:
    return lambda model, keep: (keep_share(*_importance(model, problem, options), keep), {})


def _by_time(whole: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Choose:
    execution = Execution(engine=options.engine, precision=options.precision, threads=hardware.cpu_limit())
    measure = relative_timer(whole, problem, execution, options.quantizer, work, options.objective)
    table = tabulate(whole, measure)
    return lambda model, speedup: keep_for_speedup(
        model, *_importance(model, problem, options), table=table, measure=measure, speedup=speedup
    )


def _importance(model: torch.nn.Module, problem: Problem, options: Options) -> tuple[list[Float64], list[Float64]]:
    return importance(model, problem, sample(problem.train, options.calibration_rows, problem.seed))


def _require_speedup(kept: Sequence[KeptUnits], speedup: dict[str, Any]) -> None:
    """Refuses a speedup that even the narrowest model does not reach; other misses are noise of the measurement."""
    narrowest = all(len(keep.heads) <= 1 and len(keep.neurons) <= BLOCK_NEURONS for keep in kept)
    if narrowest and speedup["measured"]["value"] < speedup["wanted"]:
        raise ModelError(
            f"a speedup of {speedup['wanted']:g} is out of reach of the pruner width: with one head and"
            f" {BLOCK_NEURONS} neurons in each layer, the model is"
            f" {speedup['measured']['value']:.2f} times as fast here. Set a lower speedup, or remove layers first."
        )


def _shrink(
    model: torch.nn.Module,
    kept: Sequence[KeptUnits],
    whole: torch.nn.Module,
    problem: Problem,
    options: Options,
    work: Path,
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """Returns a smaller copy of the model, refitted and trained, and its learning curve."""
    small = surgery.shrunk(model, kept)
    if options.refit_tokens:
        rows = sample(problem.train, options.calibration_rows, problem.seed)
        refit(small, whole, problem, first_rows_within(rows, options.refit_tokens))
    if not options.distill:
        return small, []
    steps, minutes = options.steps, options.distill.minutes
    share = {"epochs": options.distill.epochs / steps, "minutes": minutes and minutes / steps}
    return small, distill(small, whole, problem, options.distill.model_copy(update=share), work)


def _sizes(model: torch.nn.Module) -> list[dict[str, int]]:
    return [asdict(size) for size in surgery.shapes(model)]
