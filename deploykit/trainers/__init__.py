"""Trainers: methods to fine-tune a model. One file each: `Options`, `FINE_TUNED` and `train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel

from deploykit import methods

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from deploykit.modeling.problem import Problem


class Trainer(Protocol):
    """What a file of this folder provides. `FINE_TUNED` says that the base model must have its head already."""

    Options: type[BaseModel]
    FINE_TUNED: bool

    def train(self, model: torch.nn.Module, problem: Problem, options: Any, work: Path) -> list[dict[str, Any]]:
        """Fits the model in place and returns the learning curve; `work` is for checkpoints."""


def load(name: str) -> Trainer:
    """Imports a trainer by name, for example `"full"`."""
    return cast(Trainer, methods.load("trainer", name))
