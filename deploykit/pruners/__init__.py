"""Pruners: methods to remove parts of a model. One file each: `Options` and `prune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel

from deploykit import methods

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from deploykit.modeling.problem import Problem
    from deploykit.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pruned:
    """The smaller model and the facts for the manifest.

    If tokens were removed, `tokenizer` is the new tokenizer and `tokens` are the old ids of the kept tokens. If layers
    were removed, `layers` are the indices of the kept layers.
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
