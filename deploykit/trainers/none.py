"""Uses a model that is already fine-tuned, without changing it. A recipe says `train: null`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.methods import Options
from deploykit.trainers import Trained

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from deploykit.modeling.problem import Problem

__all__ = ["NEEDS_FINE_TUNED", "Options", "train"]

NEEDS_FINE_TUNED = True


def train(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Trained:
    """Returns the model unchanged, with an empty learning curve."""
    return Trained(model, [])
