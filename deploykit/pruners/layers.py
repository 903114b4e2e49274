"""Removes whole layers one by one, each time the layer whose removal does the least damage.

The position of a layer does not show whether a task needs it, so the removal of each layer is tried. Its damage is the
divergence of the logits on calibration rows from those of the unpruned model. After each removal the remaining layers
are tried again, because layers compensate for each other. The divergence needs no labels, and it changes before
accuracy on a few hundred rows does. It is also the loss that distillation minimizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from deploykit.methods import Options as BaseOptions
from deploykit.modeling.options import DistillOptions

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from deploykit.modeling.problem import Problem
    from deploykit.pruners import Pruned


class Options(BaseOptions):
    """How many layers are removed, and how the model is trained afterwards. Without `keep`, `max_drop` is 0.01."""

    keep: int | None = Field(default=None, ge=1)
    """Number of layers to keep, in encoder and decoder together."""
    max_drop: float | None = Field(default=None, ge=0, le=1)
    """Layers are removed while the first metric on the validation split, before distillation, falls by at most this."""
    calibration_rows: int = Field(default=256, ge=1)
    """Number of training rows on which the damage of a removal is measured."""
    distill: DistillOptions | None = None
    """How the unpruned model trains the pruned one afterwards (distillation); null: no training."""

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if self.keep is not None and self.max_drop is not None:
            raise ValueError("takes either keep or max_drop")
        return self


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a shallower copy of the model, the removed layers, and the damage of each removal that was tried."""
    from deploykit.pruners import _layers

    return _layers.prune(model, problem, options, work)
