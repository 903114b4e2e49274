"""What a model learns: tokenized rows with their targets, batches of them, and the metrics of a model on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from deploykit.artifact.execution import Execution
from deploykit.engines import input_names
from deploykit.engines.torch import TorchModel
from deploykit.errors import ModelError
from deploykit.evaluation import metrics
from deploykit.inference.predictor import Predictor, batches, collated
from deploykit.modeling.losses import ADVICE, are_finite
from deploykit.tasks import IGNORE_INDEX, Array, Arrays, Example, Spec, Task, tune_spec
from deploykit.tokenizer import Features

SHIFT = "prepare_decoder_input_ids_from_labels"  # a method of models that write, which the Trainer looks for
BATCH_TOKENS = 2048  # most padded tokens of a batch outside the Trainer: predictions, importance, refit


@dataclass(frozen=True)
class Row:
    """What the model reads at once in training, and its targets for the loss, by the names of the task's `TARGETS`."""

    features: Features
    targets: Arrays

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Teacher:
    """The unpruned model; `layers` are the indices of the layers that the pruned model still has."""

    model: torch.nn.Module
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """The training rows, the validation examples, and what is needed to evaluate a model on them.

    `tokenizer` is a `Tokenizer`, or an `ImageTokenizer` for a model that reads images. `texts` are those of the
    training split. `teacher` teaches pruned models (default: the model before pruning).
    """

    task: Task
    spec: Spec
    tokenizer: Any
    train: tuple[Row, ...]
    validation: tuple[Example, ...]
    seed: int
    texts: tuple[str, ...] = ()
    teacher: Teacher | None = None

    @classmethod
    def of(
        cls,
        task: Task,
        spec: Spec,
        tokenizer: Any,
        train: Sequence[Example],
        validation: Sequence[Example],
        seed: int,
        teacher: Teacher | None = None,
    ) -> "Problem":
        """Tokenizes the training examples."""
        texts = tuple(text for example in train for text in example.input.texts)
        problem = cls(task, spec, tokenizer, (), tuple(validation), seed, texts, teacher)
        return replace(problem, train=problem.rows(train))

    def rows(self, examples: Sequence[Example]) -> tuple[Row, ...]:
        """Tokenizes examples and their targets; a long text becomes several rows, one for each of its windows."""
        encoded = self.task.encode([example.input for example in examples], self.tokenizer, self.spec)
        pairs = ((example, part) for example, parts in zip(examples, encoded, strict=True) for part in parts)
        return tuple(Row(part, self.task.targets(example, part, self.spec)) for example, part in pairs)


def collate(problem: Problem, rows: Sequence[Row]) -> dict[str, Any]:
    """Pads rows, and adds their targets as `labels`: a tensor, or a dict of them if the task has several targets."""
    (batch,) = collated([row.features for row in rows], problem.tokenizer, len(rows))
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in batch.items()}
    width = max(map(len, rows))
    starts = [problem.tokenizer.token_slice(len(row), width).start for row in rows]
    targets = {}
    for name, target in problem.task.TARGETS.items():
        arrays = _stacked([row.targets[name] for row in rows], target.axes, problem.tokenizer)
        if target.axes == ("position",):  # of a token, which padding on the left moves
            arrays = arrays + np.array(starts)
        targets[name] = torch.from_numpy(arrays.astype(np.int64) if np.issubdtype(arrays.dtype, np.integer) else arrays)
    tensors["labels"] = next(iter(targets.values())) if len(targets) == 1 else targets
    return tensors


def _stacked(targets: Sequence[Array], axes: Sequence[str], tokenizer: Any) -> Array:
    """Stacks the targets of rows; those of tokens are padded with `IGNORE_INDEX`, as the tokens are."""
    count = axes.count("tokens")
    if not count:
        return np.stack(list(targets))
    width = max(len(target) for target in targets)
    padded = np.full((len(targets), *[width] * count, *targets[0].shape[count:]), IGNORE_INDEX, dtype=targets[0].dtype)
    for row, target in enumerate(targets):
        padded[row][(tokenizer.token_slice(len(target), width),) * count] = target
    return padded


def inputs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of a batch that a model reads, without targets; a decoder reads those shifted by one."""
    names = input_names(model)
    tensors = {name: tensor for name, tensor in batch.items() if name in names and name != "labels"}
    if "labels" in batch and hasattr(model, SHIFT):
        tensors["decoder_input_ids"] = getattr(model, SHIFT)(batch["labels"])
    return tensors


def padded(problem: Problem, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yields padded batches of rows of similar length, short ones first, with their targets."""
    for indices in batches([len(row) for row in rows], BATCH_TOKENS):
        yield collate(problem, [rows[index] for index in indices])


def quality(model: torch.nn.Module, problem: Problem, name: str) -> dict[str, float]:
    """Returns the task's metrics of a model on the validation examples, as the stages compute them.

    What the task tunes on them, such as thresholds, is tuned for this model before, or models whose probabilities are
    still low would all look alike.

    Raises:
        ModelError: predictions are NaN or infinite; `name` is the model's in the message.
    """
    task, spec = problem.task, problem.spec
    execution = Execution(engine="torch", threads=torch.get_num_threads(), batch_tokens=BATCH_TOKENS)
    predictor = Predictor(task, spec, problem.tokenizer, TorchModel(model, execution))
    predictions = predictor.predict([example.input for example in problem.validation])
    if not are_finite(task.dump(predictions)):
        raise ModelError(f"{name}: logits of the validation split are NaN or infinite. {ADVICE}")
    spec = tune_spec(task, spec, problem.validation, predictions)
    return metrics.compute(task.METRICS, metrics.Outcomes.of(task, spec, problem.validation, predictions))


def first_metric(model: torch.nn.Module, problem: Problem) -> float:
    """Returns the task's first metric of a model that is being pruned; see `quality`."""
    return quality(model, problem, "the model during pruning")[problem.task.METRICS[0]]


def sample(rows: tuple[Row, ...], count: int, seed: int) -> list[Row]:
    """Draws rows without replacement."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:count]]


def within(rows: list[Row], tokens: int) -> list[Row]:
    """Returns the first rows that together hold at most `tokens` tokens, and at least one."""
    totals = np.cumsum([len(row) for row in rows])
    return rows[: max(1, int((totals <= tokens).sum()))]


def balanced_weights(problem: Problem) -> torch.Tensor | None:
    """Returns `rows / (labels * count)` for each label, shape `(labels,)` (King and Zeng, 2001).

    Returns None for tasks whose targets are not labels.
    """
    ((name, target), *others) = problem.task.TARGETS.items()
    if others or target.loss != "cross_entropy":
        return None
    targets = np.concatenate([row.targets[name].reshape(-1) for row in problem.train])
    counts = np.bincount(targets[targets != IGNORE_INDEX], minlength=len(problem.spec.labels))
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)
