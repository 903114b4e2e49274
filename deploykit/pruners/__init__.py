"""Pruners, which remove parts of a model: one file each, with the names of `Pruner`."""

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
    """The result of a pruner.

    Attributes:
        model: the smaller model.
        facts: for the manifest.
        tokenizer: the new tokenizer if tokens were removed.
        tokens: the old ids of the kept tokens if tokens were removed.
        layers: the old indices of the kept layers if layers were removed.
    """

    model: torch.nn.Module
    facts: Mapping[str, Any]
    tokenizer: Tokenizer | None = None
    tokens: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None


class Pruner(Protocol):
    """The names of a file of this folder."""

    Options: type[BaseModel]

    def prune(self, model: torch.nn.Module, problem: Problem, options: Any, work: Path) -> Pruned:
        """Returns a smaller copy of the model; `work` is a folder for checkpoints and measurements."""


def load(name: str) -> Pruner:
    """Imports a pruner by name, for example `"width"`."""
    return cast(Pruner, methods.load("pruner", name))
