"""Removes the tokens that a corpus does not use, with their rows of the embedding and of an output layer.

The tokens of the corpus, special and added tokens, single characters and bytes are kept. So the corpus is tokenized as
before, which is verified; other texts may become more tokens. The layers do not change, so this saves disk space and
memory. It saves time only in an output layer over the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.methods import Options as BaseOptions

if TYPE_CHECKING:
    import torch

    from deploykit.modeling.problem import Problem
    from deploykit.pruners import Pruned


class Options(BaseOptions):
    """Which texts must be tokenized as before, besides those of the training split."""

    corpus: Path | None = None
    """A file with one text per line, or with columns; every string in a column is a text."""


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a copy of the model with a smaller vocabulary, the matching tokenizer, and how much was saved."""
    from deploykit.pruners._vocabulary import pruning

    return pruning.prune(model, problem, options, work)
