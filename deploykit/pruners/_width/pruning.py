"""Prunes heads and neurons to a share, to a speedup, or as far as the allowed loss of the metric permits."""

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
from deploykit.pruners._width.latency_table import measure_latency_table
from deploykit.pruners._width.meter import relative_timer
from deploykit.pruners._width.ranking import BLOCK_NEURONS, Float64
from deploykit.pruners._width.sizing import keep_by_share, keep_for_speedup
from deploykit.pruners.width import Options

SPEEDUP_PER_STEP = 1.2  # factor on the speedup from each step of a search to the next
METRIC_TOLERANCE = 1e-9  # a metric that is below the limit by less than this passes: it is a rounding error
log = logging.getLogger(__name__)
# Takes a model and a target: a share of this model, or a speedup over the unpruned model. Returns what each layer
# keeps, and facts for the manifest.
Chooser = Callable[[torch.nn.Module, float], tuple[list[KeptUnits], dict[str, Any]]]


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a narrower copy of the model, the sizes of its layers, and the measurements.

    Raises:
        ModelError: the speedup is out of reach, or the model cannot be timed because it exports as several graphs.
    """
    choose = _share_chooser(problem, options) if options.keep else _speedup_chooser(model, problem, options, work)
    if options.max_drop is not None:
        return _search(model, problem, options, options.max_drop, choose, work)
    small, facts, curve = model, dict[str, Any](), list[dict[str, Any]]()  # facts: of the last step
    for step, target in enumerate(_targets(options), 1):
        kept, facts = choose(small, target)
        if options.speedup:
            _require_speedup(kept, facts["speedup"])
        small, step_curve = _shrink(small, kept, model, problem, options, work / f"step-{step}")
        curve += step_curve
    return Pruned(small, {"layers": _sizes(small), **facts, "curve": curve})


def _search(
    model: torch.nn.Module, problem: Problem, options: Options, max_drop: float, choose: Chooser, work: Path
) -> Pruned:
    """Prunes the model further step by step, and returns the last one whose metric is high enough.

    Args:
        model: the unpruned model.
        problem: the validation examples, among others.
        options: of the pruner.
        max_drop: the largest allowed loss of the first metric.
        choose: chooses what to keep for a speedup.
        work: folder for checkpoints.
    """
    search_start, min_metric = time.monotonic(), first_metric(model, problem) - max_drop
    best, facts, curve, tried = model, dict[str, Any](), list[dict[str, Any]](), list[dict[str, Any]]()
    for step in count(1):
        step_start = time.monotonic()
        kept, step_facts = choose(best, SPEEDUP_PER_STEP**step)
        if [Shape(len(units.heads), len(units.neurons)) for units in kept] == surgery.shapes(best):
            break  # nothing is left to remove
        small, step_curve = _shrink(best, kept, model, problem, options, work / f"step-{step}")
        metric = first_metric(small.eval(), problem)
        tried.append({**step_facts["speedup"], "metric": metric})
        log.info("search: %s", tried[-1])
        if metric < min_metric - METRIC_TOLERANCE:
            break
        best, facts, curve = small, step_facts, [*curve, *step_curve]
        now = time.monotonic()
        used_s, step_s = now - search_start, now - step_start
        if options.minutes and used_s + step_s > 60 * options.minutes:  # another step would take too long
            break
    return Pruned(best, {"layers": _sizes(best), **facts, "search": tried, "curve": curve})


def _targets(options: Options) -> list[float]:
    """Returns the target of each step: a share of the previous step's model, or a speedup over the unpruned model."""
    steps = range(1, options.steps + 1)
    if options.keep:
        return [options.keep ** (1 / options.steps) for _ in steps]
    return [(options.speedup or 1) ** (step / options.steps) for step in steps]


def _share_chooser(problem: Problem, options: Options) -> Chooser:
    """Returns a chooser whose target is a share of the heads and neurons of the given model."""
    return lambda model, keep: (keep_by_share(*_importance(model, problem, options), keep), {})


def _speedup_chooser(unpruned: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Chooser:
    """Measures a latency table, and returns a chooser whose target is a speedup over the unpruned model."""
    execution = Execution(engine=options.engine, precision=options.precision, threads=hardware.cpu_limit())
    measure = relative_timer(unpruned, problem, execution, options.quantizer, work, options.objective)
    table = measure_latency_table(unpruned, measure)
    return lambda model, speedup: keep_for_speedup(
        model, *_importance(model, problem, options), table=table, measure=measure, speedup=speedup
    )


def _importance(model: torch.nn.Module, problem: Problem, options: Options) -> tuple[list[Float64], list[Float64]]:
    """Returns the importance of heads and of neurons on calibration rows; see `importance`."""
    return importance(model, problem, sample(problem.train, options.calibration_rows, problem.seed))


def _require_speedup(kept: Sequence[KeptUnits], speedup: dict[str, Any]) -> None:
    """Raises a ModelError if even the narrowest model does not reach the speedup.

    If a wider model misses it, the cause is the noise of the measurement.
    """
    is_narrowest = all(len(units.heads) <= 1 and len(units.neurons) <= BLOCK_NEURONS for units in kept)
    if is_narrowest and speedup["measured"]["value"] < speedup["wanted"]:
        raise ModelError(
            f"a speedup of {speedup['wanted']:g} is out of reach of the pruner width: with one head and"
            f" {BLOCK_NEURONS} neurons in each layer, the model is"
            f" {speedup['measured']['value']:.2f} times as fast here. Set a lower speedup, or remove layers first."
        )


def _shrink(
    model: torch.nn.Module,
    kept: Sequence[KeptUnits],
    unpruned: torch.nn.Module,
    problem: Problem,
    options: Options,
    work: Path,
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """Returns a smaller copy of a model, refitted and trained as the options say, and its learning curve.

    Args:
        model: the model of the step before.
        kept: what each layer keeps.
        unpruned: the unpruned model, to whose outputs the copy is fitted.
        problem: the training rows.
        options: of the pruner.
        work: folder for checkpoints.
    """
    small = surgery.shrunk(model, kept)
    if options.refit_tokens:
        rows = sample(problem.train, options.calibration_rows, problem.seed)
        refit(small, unpruned, problem, first_rows_within(rows, options.refit_tokens))
    if not options.distill:
        return small, []
    steps, minutes = options.steps, options.distill.minutes
    step_share = {"epochs": options.distill.epochs / steps, "minutes": minutes and minutes / steps}
    return small, distill(small, unpruned, problem, options.distill.model_copy(update=step_share), work)


def _sizes(model: torch.nn.Module) -> list[dict[str, int]]:
    """Returns the heads and neurons of each layer for the manifest."""
    return [asdict(shape) for shape in surgery.shapes(model)]
