"""Removes attention heads and feed-forward neurons, starting with the least important ones of the whole model.

Importance is Fisher information on calibration rows. The target is a share of all heads and neurons to keep, or a
speedup, for which a latency table measured on this machine says what heads and neurons cost. The output projections are
then refitted by least squares to the outputs of the unpruned model, which may train the pruned one afterwards
(distillation). Matrices become smaller, so that every engine gains.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from deploykit import engines, hardware
from deploykit.artifact.execution import Execution, Precision
from deploykit.errors import ModelError
from deploykit.methods import Options as Base
from deploykit.modeling import surgery
from deploykit.modeling.distillation import DistillOptions, distill
from deploykit.modeling.importance import importance
from deploykit.modeling.problem import Problem, Row, first_metric
from deploykit.modeling.refit import refit
from deploykit.modeling.surgery import Kept, Shape
from deploykit.pruners import Pruned
from deploykit.pruners._width.latency_table import tabulate
from deploykit.pruners._width.meter import Objective, relative_timer
from deploykit.pruners._width.ranking import BLOCK_NEURONS, Float64
from deploykit.pruners._width.sizing import keep_for_speedup, keep_share

TARGETS = ("keep", "speedup", "max_drop")
DEFAULT_KEEP = 0.75
SPEEDUP_PER_STEP = 1.2  # of a search
log = logging.getLogger(__name__)
# (model, target) to what to keep and the facts; the target is a share of the model, or a speedup over the unpruned one
Choose = Callable[[torch.nn.Module, float], tuple[list[Kept], dict[str, Any]]]


class Options(Base):
    """One target (`keep`, `speedup` or `max_drop`; default `keep: 0.75`), and how the pruned model is trained.

    A speedup is measured on the graph of `quantizer`, in `engine` at `precision`, for `objective`.
    """

    keep: float | None = Field(default=None, gt=0, le=1)
    """Share of attention heads and of feed-forward neurons to keep."""
    speedup: float | None = None
    """How many times as fast as before the model must be, measured end to end."""
    max_drop: float | None = Field(default=None, ge=0, le=1)
    """Largest allowed loss of the first metric on the validation split; the fastest model within it is kept."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes for the search of `max_drop`; a step that would take longer, judged by the last one, is not begun."""
    steps: int = Field(default=1, ge=1)
    """Number of pruning steps; importance is computed again for each."""
    engine: str = "onnxruntime"
    """Engine with which the speedup is measured."""
    precision: Precision = "float32"
    """Precision at which the speedup is measured."""
    quantizer: Literal["dynamic", "none"] = "dynamic"
    """Quantizer of the graph with which the speedup is measured; `none`: the float graph."""
    objective: Objective = "latency"
    """`latency` of one text at a time, or `throughput` at mixed lengths, sorted and batched."""
    calibration_rows: int = Field(default=1024, ge=1)
    """Number of training rows on which importance is computed."""
    refit_tokens: int = Field(default=16384, ge=0)
    """Number of tokens of those rows for the least-squares refit; 0: no refit."""
    distill: DistillOptions | None = None
    """How the unpruned model trains the pruned one (distillation); null: no training. The steps share its epochs and
    minutes, but each step of a search by `max_drop` gets all of them."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_target(cls, values: Any) -> Any:
        missing = isinstance(values, dict) and all(values.get(name) is None for name in TARGETS)
        return {**values, "keep": DEFAULT_KEEP} if missing else values

    @field_validator("speedup")
    @classmethod
    def _is_faster(cls, speedup: float | None) -> float | None:
        if speedup is not None and not speedup >= 1:
            raise ValueError(f"must be at least 1, got {speedup:g}. To keep the model as it is, set prune: null.")
        return speedup

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        targets = [f"{name}: {value:g}" for name in TARGETS if (value := getattr(self, name)) is not None]
        if len(targets) > 1:
            raise ValueError(f"takes one target, got {', '.join(targets)}. Leave all but one out.")
        if self.minutes is not None and self.max_drop is None:
            raise ValueError(
                "minutes limits the search of max_drop, got no max_drop. To limit the training, set distill.minutes."
            )
        if self.steps > 1 and self.max_drop is not None:
            raise ValueError(f"max_drop has steps of its own, got steps: {self.steps}. Leave steps out.")
        if self.keep is None:
            engine = engines.load(self.engine)
            if engine.KIND != "onnx" or self.precision not in engine.PRECISIONS:
                raise ValueError(f"needs an engine that runs graphs in {self.precision}, got engine: {self.engine}.")
        return self


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
    return importance(model, sample(problem.train, options.calibration_rows, problem.seed), problem.tokenizer)


def _require_speedup(kept: Sequence[Kept], speedup: dict[str, Any]) -> None:
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
    kept: Sequence[Kept],
    whole: torch.nn.Module,
    problem: Problem,
    options: Options,
    work: Path,
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """Returns a smaller copy of the model, refitted and trained, and its learning curve."""
    small = surgery.shrunk(model, kept)
    if options.refit_tokens:
        rows = sample(problem.train, options.calibration_rows, problem.seed)
        refit(small, whole, within(rows, options.refit_tokens), problem.tokenizer)
    if not options.distill:
        return small, []
    steps, minutes = options.steps, options.distill.minutes
    share = {"epochs": options.distill.epochs / steps, "minutes": minutes and minutes / steps}
    return small, distill(small, whole, problem, options.distill.model_copy(update=share), work)


def _sizes(model: torch.nn.Module) -> list[dict[str, int]]:
    return [asdict(size) for size in surgery.shapes(model)]


def sample(rows: tuple[Row, ...], count: int, seed: int) -> list[Row]:
    """Draws rows without replacement."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:count]]


def within(rows: list[Row], tokens: int) -> list[Row]:
    """Returns the first rows that together hold at most `tokens` tokens, and at least one."""
    totals = np.cumsum([len(row.encoding) for row in rows])
    return rows[: max(1, int((totals <= tokens).sum()))]
