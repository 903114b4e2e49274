"""Removes attention heads and feed-forward neurons, starting with the least important ones of the whole model.

Importance is Fisher information on calibration rows. The target is a share of all heads and neurons to keep, a speedup,
or a largest loss of the metric. For the last two, a latency table measured on this machine says how much time heads and
neurons take. After the pruning, the output projections are refitted by least squares to the outputs of the unpruned
model, which may also train the pruned one (distillation). Matrices become smaller, so that every engine becomes faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from deploykit import engines
from deploykit.artifact.execution import Precision
from deploykit.methods import Options as BaseOptions
from deploykit.modeling.options import DistillOptions

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from deploykit.modeling.problem import Problem
    from deploykit.pruners import Pruned

TARGET_OPTIONS = ("keep", "speedup", "max_drop")  # of which a recipe sets one
DEFAULT_KEEP = 0.75  # the target if the recipe sets none


class Options(BaseOptions):
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
    objective: Literal["latency", "throughput"] = "latency"
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
        missing = isinstance(values, dict) and all(values.get(name) is None for name in TARGET_OPTIONS)
        return {**values, "keep": DEFAULT_KEEP} if missing else values

    @field_validator("speedup")
    @classmethod
    def _is_faster(cls, speedup: float | None) -> float | None:
        if speedup is not None and not speedup >= 1:
            raise ValueError(f"must be at least 1, got {speedup:g}. To keep the model as it is, set prune: null.")
        return speedup

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        targets = [f"{name}: {value:g}" for name in TARGET_OPTIONS if (value := getattr(self, name)) is not None]
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
    from deploykit.pruners._width import pruning

    return pruning.prune(model, problem, options, work)
