"""Removes attention heads and feed-forward neurons, the least important of the whole model first.

Importance is Fisher information on calibration rows. What goes is a share of all heads and neurons, or what costs
more time than it is worth, by a table measured on this machine. What is left of each output projection is refitted
by least squares to what the whole model computed; then, when asked for, the unpruned model teaches the pruned one.
Dense kernels get faster because the matrices get smaller.
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
from deploykit.modeling.judging import first_metric
from deploykit.modeling.problem import Problem, Row
from deploykit.modeling.refit import refit
from deploykit.modeling.surgery import Kept, Shape
from deploykit.pruners import Pruned
from deploykit.pruners._width.latency_table import tabulate
from deploykit.pruners._width.meter import Objective, relative_timer
from deploykit.pruners._width.ranking import BLOCK_NEURONS, Float64
from deploykit.pruners._width.sizing import keep_for_speedup, keep_share

TARGETS = ("keep", "speedup", "max_drop")
KEEP = 0.75  # where no target is given
STRIDE = 1.2  # in a search, how many times as fast as the one before each model is to be
log = logging.getLogger(__name__)
# what stays of a model for a target (a share of it, or a speedup over the whole one), and the facts of that
Choose = Callable[[torch.nn.Module, float], tuple[list[Kept], dict[str, Any]]]


class Options(Base):
    """How much stays, by one target (`keep`, `speedup` or `max_drop`; default `keep: 0.75`), and how it recovers.

    A speedup is measured on the graph of `quantizer`, in `engine` at `precision`, for `objective`.
    """

    keep: float | None = Field(default=None, gt=0, le=1)
    """Share of attention heads and of feed-forward neurons that stays."""
    speedup: float | None = None
    """How many times as fast as before the model is to be, measured end to end."""
    max_drop: float | None = Field(default=None, ge=0, le=1)
    """Largest loss of the first metric on the validation split; the fastest model within it is kept."""
    minutes: float | None = Field(default=None, gt=0)
    """Time for the search by `max_drop`: no step is begun that would end later, judged by the step before."""
    steps: int = Field(default=1, ge=1)
    """Steps in which the model is pruned; importance is computed again after each."""
    engine: str = "onnxruntime"
    """Engine that the speedup is measured with."""
    precision: Precision = "float32"
    """Precision that the speedup is measured at."""
    quantizer: Literal["dynamic", "none"] = "dynamic"
    """Quantizer of the graph that is timed; `none`: the float graph."""
    objective: Objective = "latency"
    """`latency` of one text at a time, or `throughput` at mixed lengths, sorted and batched."""
    calibration_rows: int = Field(default=1024, ge=1)
    """Rows of the training split on which importance is computed."""
    refit_tokens: int = Field(default=16384, ge=0)
    """Tokens of those rows for the least-squares refit of what stays; 0: no refit."""
    distill: DistillOptions | None = None
    """How the unpruned model teaches the pruned one; null: not at all. The steps share its epochs and minutes; each
    step of a search by `max_drop` has all of them."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_target(cls, given: Any) -> Any:
        missing = isinstance(given, dict) and all(given.get(name) is None for name in TARGETS)
        return {**given, "keep": KEEP} if missing else given

    @field_validator("speedup")
    @classmethod
    def _is_faster(cls, speedup: float | None) -> float | None:
        if speedup is not None and not speedup >= 1:
            raise ValueError(f"must be at least 1, got {speedup:g}. To keep the model as it is, set prune: null.")
        return speedup

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [f"{name}: {value:g}" for name in TARGETS if (value := getattr(self, name)) is not None]
        if len(given) > 1:
            raise ValueError(f"takes one target, got {', '.join(given)}. Leave all but one out.")
        if self.minutes is not None and self.max_drop is None:
            raise ValueError(
                "minutes bounds the search of max_drop, got no max_drop. To bound the recovery, set distill.minutes."
            )
        if self.steps > 1 and self.max_drop is not None:
            raise ValueError(f"max_drop takes steps of its own, got steps: {self.steps}. Leave steps out.")
        if self.keep is None:
            engine = engines.load(self.engine)
            if engine.KIND != "onnx" or self.precision not in engine.PRECISIONS:
                raise ValueError(f"needs an engine that runs graphs in {self.precision}, got engine: {self.engine}.")
        return self


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a narrower copy of the model, what was kept, and what was measured.

    Raises:
        ModelError: the speedup is out of reach, or the time of such a model cannot be measured.
    """
    choose = _by_share(problem, options) if options.keep else _by_time(model, problem, options, work)
    if options.max_drop is not None:
        return _search(model, problem, options, options.max_drop, choose, work)
    small, facts, curve = model, dict[str, Any](), list[dict[str, Any]]()
    for step, target in enumerate(_targets(options), 1):
        kept, facts = choose(small, target)
        if options.speedup:
            _check_reached(kept, facts["speedup"])
        small, learned = _cut(small, kept, model, problem, options, work / f"step-{step}")
        curve += learned
    return Pruned(small, {"layers": _sizes(small), **facts, "curve": curve})


def _search(
    model: torch.nn.Module, problem: Problem, options: Options, max_drop: float, choose: Choose, work: Path
) -> Pruned:
    """Makes the model faster step by step, each from the one before, and returns the last that is good enough."""
    started, lowest = time.monotonic(), first_metric(model, problem) - max_drop
    best, facts, curve, tried = model, dict[str, Any](), list[dict[str, Any]](), list[dict[str, Any]]()
    for step in count(1):
        began = time.monotonic()
        kept, found = choose(best, STRIDE**step)
        if [Shape(len(keep.heads), len(keep.neurons)) for keep in kept] == surgery.shapes(best):
            break  # there is nothing left to remove
        small, learned = _cut(best, kept, model, problem, options, work / f"step-{step}")
        tried.append({**found["speedup"], "metric": first_metric(small.eval(), problem)})
        log.info("search: %s", tried[-1])
        if tried[-1]["metric"] < lowest - 1e-9:
            break
        best, facts, curve = small, found, [*curve, *learned]
        now = time.monotonic()
        if options.minutes and now - started + now - began > 60 * options.minutes:
            break
    return Pruned(best, {"layers": _sizes(best), **facts, "search": tried, "curve": curve})


def _targets(options: Options) -> list[float]:
    """Returns what each step is for: a share of what the one before left, or a speedup over the whole model."""
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


def _check_reached(kept: Sequence[Kept], speedup: dict[str, Any]) -> None:
    """Refuses a speedup that the narrowest model does not have; a miss by the noise of measuring is let through."""
    narrowest = all(len(keep.heads) <= 1 and len(keep.neurons) <= BLOCK_NEURONS for keep in kept)
    if narrowest and speedup["measured"]["value"] < speedup["wanted"]:
        raise ModelError(
            f"a speedup of {speedup['wanted']:g} is out of reach of the pruner width: with one head and"
            f" {BLOCK_NEURONS} neurons in each layer, the model is"
            f" {speedup['measured']['value']:.2f} times as fast here."
            " Ask for less, or remove layers before."
        )


def _cut(
    model: torch.nn.Module,
    kept: Sequence[Kept],
    whole: torch.nn.Module,
    problem: Problem,
    options: Options,
    work: Path,
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """Returns a copy of the model that has what is kept and has recovered, and its learning curve."""
    small = surgery.shrunk(model, kept)
    if options.refit_tokens:
        rows = sample(problem.train, options.calibration_rows, problem.seed)
        refit(small, whole, within(rows, options.refit_tokens), problem.tokenizer)
    if not options.distill:
        return small, []
    steps, minutes = options.steps, options.distill.minutes  # the epochs of a step may be a part of one
    own = {"epochs": options.distill.epochs / steps, "minutes": minutes and minutes / steps}
    return small, distill(small, whole, problem, options.distill.model_copy(update=own), work)


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
