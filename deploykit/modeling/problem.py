"""What a model learns: tokenized rows with their targets, batches of them, and the metrics of a model on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deploykit.engines import input_names
from deploykit.evaluation import metrics
from deploykit.inference.predictor import batches
from deploykit.modeling.losses import require_logits
from deploykit.tasks import IGNORED, Example, Float32, Int64, Task
from deploykit.tokenizer import Encoding, Tokenizer

SHIFT = "prepare_decoder_input_ids_from_labels"  # a method of models that write, which the Trainer looks for
BATCH_TOKENS = 2048  # padded tokens of a batch that a model evaluates


@dataclass(frozen=True)
class Row:
    """A tokenized example and its target for the loss, of shape `()` or `(tokens,)`."""

    encoding: Encoding
    target: Int64
    example: Example


@dataclass(frozen=True)
class Teacher:
    """The unpruned model; `layers` are the indices of the layers that the pruned model still has."""

    model: torch.nn.Module
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """The tokenized splits, and what is needed to judge predictions on them.

    `texts` are those of the training split. `teacher` teaches pruned models (default: the model before pruning).
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
    encodings = tokenizer.encode([example.text for example in examples], [example.pair for example in examples])
    return tuple(
        Row(encoding, task.loss_targets(example, encoding, labels), example)
        for example, encoding in zip(examples, encodings, strict=True)
    )


def collate(tokenizer: Tokenizer, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Pads rows and their targets (`labels`); targets of padding are `IGNORED`."""
    batch = tokenizer.collate([row.encoding for row in rows])
    targets = [row.target for row in rows]
    if targets[0].ndim == 0:
        batch["labels"] = np.stack(targets)
    else:
        width = max(len(target) for target in targets)
        batch["labels"] = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for row, target in enumerate(targets):
            batch["labels"][row, tokenizer.place(len(target), width)] = target
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def inputs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of a batch that a model reads, without targets; a decoder reads those shifted by one."""
    names = input_names(model)
    tensors = {name: tensor for name, tensor in batch.items() if name in names and name != "labels"}
    if "labels" in batch and hasattr(model, SHIFT):
        tensors["decoder_input_ids"] = getattr(model, SHIFT)(batch["labels"])
    return tensors


def padded(rows: Sequence[Row], tokenizer: Tokenizer) -> Iterator[dict[str, torch.Tensor]]:
    """Yields batches of rows of similar length, targets included."""
    for indices in batches([len(row.encoding) for row in rows], BATCH_TOKENS):
        yield collate(tokenizer, [rows[index] for index in indices])


@torch.inference_mode()
def quality(model: torch.nn.Module, problem: Problem, name: str) -> dict[str, float]:
    """Returns the task's metrics of a model in evaluation mode on the validation rows, as the stages compute them.

    Raises:
        ModelError: logits are NaN or infinite; `name` is the model's in the message.
    """
    rows, scores, device = problem.validation, dict[int, Float32](), next(model.parameters()).device
    for indices in batches([len(row.encoding) for row in rows], BATCH_TOKENS):
        batch = collate(problem.tokenizer, [rows[index] for index in indices])
        logits = model(**inputs(model, {key: tensor.to(device) for key, tensor in batch.items()}))["logits"]
        logits = logits.float().cpu().numpy()
        require_logits(logits, batch["labels"].numpy(), name)
        for index, array in zip(indices, logits, strict=True):
            row = rows[index]
            real = array[problem.tokenizer.place(len(row.encoding), len(array))] if array.ndim == 2 else array
            scores[index] = problem.task.scores(real, row.example.text, row.encoding)
    gold = [problem.task.targets(row.example, problem.labels) for row in rows]
    predicted = metrics.predictions([scores[index] for index in range(len(rows))])
    return metrics.compute(problem.task.METRICS, gold, predicted, problem.labels)


def first_metric(model: torch.nn.Module, problem: Problem) -> float:
    """Returns the task's first metric of a model that is being pruned; see `quality`."""
    return quality(model, problem, "the model during pruning")[problem.task.METRICS[0]]


def sample(rows: tuple[Row, ...], count: int, seed: int) -> list[Row]:
    """Draws rows without replacement."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:count]]


def within(rows: list[Row], tokens: int) -> list[Row]:
    """Returns the first rows that together hold at most `tokens` tokens, and at least one."""
    totals = np.cumsum([len(row.encoding) for row in rows])
    return rows[: max(1, int((totals <= tokens).sum()))]


def balanced_weights(problem: Problem) -> torch.Tensor:
    """Returns `rows / (labels * count)` for each label, shape `(labels,)` (King and Zeng, 2001)."""
    targets = np.concatenate([row.target.reshape(-1) for row in problem.train])
    counts = np.bincount(targets[targets != IGNORED], minlength=len(problem.labels))
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)
