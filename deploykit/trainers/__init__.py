"""Ways to fine-tune. One file a way: `Options` and `train`.

`train(model, problem, options, work)` changes the model in place and returns the learning curve.
"""

from pathlib import Path
from typing import Any, Protocol, cast

import torch
from pydantic import BaseModel

from deploykit import methods
from deploykit.modeling.problem import Problem


class Trainer(Protocol):
    """What a file of this folder provides. `FINE_TUNED` says that the base model must have its head."""

    Options: type[BaseModel]
    FINE_TUNED: bool

    def train(self, model: torch.nn.Module, problem: Problem, options: Any, work: Path) -> list[dict[str, Any]]:
        """Fits the model in place; `work` is for checkpoints. Returns the learning curve."""


def load(name: str) -> Trainer:
    """Imports a trainer by name, for example `"full"`."""
    return cast(Trainer, methods.load("trainer", name))
