"""Trainers: methods to fine-tune a model. Each is one file with `Options`, `NEEDS_FINE_TUNED` and `train`."""

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
    """What a trainer returns."""

    model: torch.nn.Module  # with the weights of its best epoch; may be another object than the one that was given
    curve: list[dict[str, Any]]  # learning curve: the loss of logged steps, and the metrics of each epoch


class Trainer(Protocol):
    """The module-level names that a file of this folder provides."""

    Options: type[BaseModel]
    NEEDS_FINE_TUNED: bool  # whether the base model must have a trained head for the task; otherwise it gets a new one

    def train(self, model: torch.nn.Module, problem: Problem, options: Any, work: Path) -> Trained:
        """Fits a model to the training rows.

        Args:
            model: with the head of the task.
            problem: training and validation rows, task and tokenizer.
            options: of the type `Options`.
            work: directory for checkpoints; training that was killed goes on from the newest one there.
        """


def load(name: str) -> Trainer:
    """Imports a trainer by name, such as `"full"`."""
    return cast(Trainer, methods.load("trainer", name))
