"""Ways to make a model smaller. One file a way: `Options` and `prune`.

`prune(model, problem, options, work)` returns a smaller copy and the facts for the manifest, as one `Pruned`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from pydantic import BaseModel

from deploykit import methods
from deploykit.modeling.problem import Problem
from deploykit.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pruned:
    """What a pruner made: the smaller model and the facts for the manifest.

    `tokenizer` is the new one where tokens went, and `tokens` are the old ids of those that stayed; `layers` are
    the indices of the layers that stayed, where some went.
    """

    model: torch.nn.Module
    facts: Mapping[str, Any]
    tokenizer: Tokenizer | None = None
    tokens: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None


class Pruner(Protocol):
    """What a file of this folder provides."""

    Options: type[BaseModel]

    def prune(self, model: torch.nn.Module, problem: Problem, options: Any, work: Path) -> Pruned:
        """Returns a smaller copy of the model; `work` is for checkpoints."""


def load(name: str) -> Pruner:
    """Imports a pruner by name, for example `"width"`."""
    return cast(Pruner, methods.load("pruner", name))
