"""Removes attention heads and feed-forward neurons, the least important of the whole model first.

Importance is Fisher information on calibration rows; what is left of each output projection is refitted by
least squares to what the whole model computed; then, when asked for, the unpruned model teaches the pruned
one for an epoch. Dense kernels get faster because the matrices get smaller.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from deploykit import architectures
from deploykit.architectures import Kept
from deploykit.fitting import Problem, Row
from deploykit.methods import Options as Base
from deploykit.pruners import Pruned
from deploykit.pruners._distillation import DistillOptions, distill
from deploykit.pruners._fisher import importance
from deploykit.pruners._refit import refit

BLOCK = 64  # neurons are removed in blocks that fill a tile of the matrix units


class Options(Base):
    """How much stays, and how it recovers.

    `keep` is the share of heads and of feed-forward neurons that stays; `calibration_rows` are taken from
    the training split for the importance, and of those as many as hold `refit_tokens` tokens for the
    refit (0: none); `distill` is how the unpruned model teaches the pruned one (null: not at all).
    """

    keep: float = Field(default=0.75, gt=0, le=1)
    calibration_rows: int = Field(default=1024, ge=1)
    refit_tokens: int = Field(default=16384, ge=0)
    distill: DistillOptions | None = None


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a narrower copy of the model and what was kept."""
    rows = sample(problem.train, options.calibration_rows, problem.seed)
    heads, neurons = importance(model, rows, problem.tokenizer)
    kept = chosen(heads, neurons, options.keep)
    small = architectures.shrunk(model, kept)
    if options.refit_tokens:
        refit(small, model, within(rows, options.refit_tokens), problem.tokenizer)
    curve = distill(small, model, problem, options.distill, work) if options.distill else []
    sizes = [{"heads": len(keep.heads), "neurons": len(keep.neurons)} for keep in kept]
    return Pruned(small, {"layers": sizes, "curve": curve})


def chosen(heads: list[np.ndarray[Any, Any]], neurons: list[np.ndarray[Any, Any]], keep: float) -> list[Kept]:
    """Ranks heads over all layers, and blocks of neurons over all layers, and keeps the best of each.

    Args:
        heads: importance, one array a layer, `(heads,)`.
        neurons: importance, one array a layer, `(neurons,)`.
        keep: the share that stays; at least one head and one block stay in each layer.
    """
    kept_heads = best_of_all(heads, keep)
    order = [np.argsort(-row, kind="stable") for row in neurons]
    blocks = [[index[start : start + BLOCK] for start in range(0, len(index), BLOCK)] for index in order]
    worth = [np.array([row[block].sum() for block in found]) for row, found in zip(neurons, blocks, strict=True)]
    kept_blocks = best_of_all(worth, keep)
    kept_neurons = [np.concatenate([found[i] for i in rows]) for found, rows in zip(blocks, kept_blocks, strict=True)]
    return [
        Kept(tuple(rows.tolist()), tuple(sorted(columns.tolist())))
        for rows, columns in zip(kept_heads, kept_neurons, strict=True)
    ]


def best_of_all(worth: list[np.ndarray[Any, Any]], keep: float) -> list[np.ndarray[Any, Any]]:
    """Returns, for each layer, the indices among the best `keep` of all layers together, ascending.

    The best of each layer stays whatever it is worth.
    """
    first = {(layer, int(row.argmax())) for layer, row in enumerate(worth) if len(row)}
    total = max(len(first), round(keep * sum(map(len, worth))))
    everything = [(-row[index], layer, index) for layer, row in enumerate(worth) for index in range(len(row))]
    rest = [(layer, index) for _, layer, index in sorted(everything) if (layer, index) not in first]
    stays = first | set(rest[: total - len(first)])
    return [np.array(sorted(index for found, index in stays if found == layer), int) for layer in range(len(worth))]


def sample(rows: tuple[Row, ...], count: int, seed: int) -> list[Row]:
    """Draws rows without replacement."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:count]]


def within(rows: list[Row], tokens: int) -> list[Row]:
    """Returns the first rows that together hold at most `tokens` tokens, and at least one."""
    totals = np.cumsum([len(row.encoding) for row in rows])
    return rows[: max(1, int((totals <= tokens).sum()))]
