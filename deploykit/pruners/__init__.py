"""Ways to make a model smaller. One file a way: `Options` and `prune`.

`prune(model, problem, options, work)` returns a smaller copy and the facts for the manifest.
"""

from pathlib import Path
from typing import Any, Protocol, cast

import torch
from pydantic import BaseModel

from deploykit import methods
from deploykit.fitting import Problem


class Pruner(Protocol):
    """What a file of this folder provides."""

    Options: type[BaseModel]

    def prune(
        self, model: torch.nn.Module, problem: Problem, options: Any, work: Path
    ) -> tuple[torch.nn.Module, dict[str, Any]]:
        """Returns a smaller copy of the model; `work` is for checkpoints."""


def load(name: str) -> Pruner:
    """Imports a pruner by name, for example `"width"`."""
    return cast(Pruner, methods.load("pruner", name))
