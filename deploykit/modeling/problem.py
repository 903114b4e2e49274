"""What a model learns: tokenized rows with their targets, and the batches that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from deploykit.engines import input_names
from deploykit.tasks import IGNORED, Example, Int64, Task
from deploykit.tokenizer import Encoding, Tokenizer


@dataclass(frozen=True)
class Row:
    """One tokenized input, what the loss compares, of shape `()` or `(tokens,)`, and what both were made of."""

    encoding: Encoding
    target: Int64
    example: Example


@dataclass(frozen=True)
class Teacher:
    """A whole model; `layers` are the indices of those of its layers that a smaller one still has."""

    model: torch.nn.Module
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """What there is to learn: tokenized splits, and how predictions are judged.

    `texts` are those of the training split. `teacher` teaches what is pruned (default: the model as it was before).
    """

    task: Task
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    seed: int
    texts: tuple[str, ...] = ()
    teacher: Teacher | None = None


def rows(task: Task, tokenizer: Tokenizer, examples: Sequence[Example], labels: Sequence[str]) -> tuple[Row, ...]:
    """Tokenizes examples and their targets."""
    encodings = tokenizer.encode([found.text for found in examples], [found.pair for found in examples])
    return tuple(
        Row(encoding, task.loss_targets(found, encoding, labels), found)
        for found, encoding in zip(examples, encodings, strict=True)
    )


def collate(tokenizer: Tokenizer, found: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Pads rows and their targets; `IGNORED` where nothing is compared."""
    batch = tokenizer.collate([row.encoding for row in found])
    targets = [row.target for row in found]
    if targets[0].ndim == 0:
        batch["labels"] = np.stack(targets)
    else:
        width = max(len(target) for target in targets)
        batch["labels"] = np.full((len(found), width), IGNORED, dtype=np.int64)
        for row, target in enumerate(targets):
            batch["labels"][row, tokenizer.place(len(target), width)] = target
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def inputs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what a model takes of a batch, targets left out; one that writes text reads them shifted by one."""
    names = input_names(model)
    found = {name: tensor for name, tensor in batch.items() if name in names and name != "labels"}
    if "labels" in batch and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        found["decoder_input_ids"] = cast(Any, model).prepare_decoder_input_ids_from_labels(batch["labels"])
    return found
