"""Trainers: methods to fine-tune a model. One file each: `Options`, `NEEDS_FINE_TUNED` and `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel

from deploykit import methods

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from deploykit.modeling.problem import Problem


@dataclass(frozen=True)
class Trained:
    """The model at its best epoch, which need not be the object that was given, and its learning curve."""

    model: torch.nn.Module
    curve: list[dict[str, Any]]


class Trainer(Protocol):
    """What a file of this folder provides. `NEEDS_FINE_TUNED` says that the base model must have its head already."""

    Options: type[BaseModel]
    NEEDS_FINE_TUNED: bool

    def train(self, model: torch.nn.Module, problem: Problem, options: Any, work: Path) -> Trained:
        """Fits the model; `work` is for checkpoints."""


def load(name: str) -> Trainer:
    """Imports a trainer by name, for example `"full"`."""
    return cast(Trainer, methods.load("trainer", name))
