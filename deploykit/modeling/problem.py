"""The rows that a model learns from, batches of them, and the metrics of a model on the validation examples."""

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
from deploykit.inference.predictor import Predictor, group_by_length, pad_in_batches
from deploykit.modeling.losses import DIVERGENCE_ADVICE, are_finite
from deploykit.tasks import IGNORE_INDEX, Array, Arrays, Example, Spec, Task, tune_spec
from deploykit.tokenizer import Features

# A method of encoder-decoder models, for which the Trainer looks, too. It makes the decoder's input from the targets.
SHIFT_METHOD = "prepare_decoder_input_ids_from_labels"
MAX_BATCH_TOKENS = 2048  # padding included; for batches outside the Trainer, such as those of predictions


@dataclass(frozen=True)
class Row:
    """An input of the model in training, and its targets by the names of the task's `TARGETS`."""

    features: Features
    targets: Arrays

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Teacher:
    """The unpruned model; `layers` are the indices of those of its layers that the pruned model still has."""

    model: torch.nn.Module
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """The training rows, the validation examples, and what is needed to evaluate a model on them.

    Attributes:
        task: the recipe's task.
        spec: the labels and the task's options.
        tokenizer: a `Tokenizer`, or an `ImageTokenizer` for a model that reads images.
        train: the tokenized rows of the training split.
        validation: the examples of the validation split.
        seed: of everything that is drawn at random.
        texts: all texts of the training split.
        teacher: teaches pruned models; None: the model before the pruning step does.
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
        """Makes a problem from examples, and tokenizes those of the training split."""
        texts = tuple(text for example in train for text in example.input.texts)
        problem = cls(task, spec, tokenizer, (), tuple(validation), seed, texts, teacher)
        return replace(problem, train=problem.rows(train))

    def rows(self, examples: Sequence[Example]) -> tuple[Row, ...]:
        """Tokenizes examples and computes their targets; each window of a long text becomes a row."""
        encoded = self.task.encode([example.input for example in examples], self.tokenizer, self.spec)
        pairs = ((example, window) for example, windows in zip(examples, encoded, strict=True) for window in windows)
        return tuple(Row(window, self.task.targets(example, window, self.spec)) for example, window in pairs)


def collate(problem: Problem, rows: Sequence[Row]) -> dict[str, Any]:
    """Pads rows to one batch.

    Returns:
        The tensors by name. Those of the inputs are `(rows, tokens)`. The targets are `labels`: a tensor, or a dict of
        tensors by name if the task has several targets.
    """
    (batch,) = pad_in_batches([row.features for row in rows], problem.tokenizer, len(rows))
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in batch.items()}
    width = max(map(len, rows))
    starts = [problem.tokenizer.token_slice(len(row), width).start for row in rows]  # above 0 if padding is on the left
    targets = {}
    for name, target in problem.task.TARGETS.items():
        array = _stack_targets([row.targets[name] for row in rows], target.axes, problem.tokenizer)
        if target.axes == ("position",):  # the index of a token, which padding on the left moves
            array = array + np.array(starts)
        targets[name] = torch.from_numpy(array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else array)
    tensors["labels"] = next(iter(targets.values())) if len(targets) == 1 else targets
    return tensors


def _stack_targets(targets: Sequence[Array], axes: Sequence[str], tokenizer: Any) -> Array:
    """Stacks the targets of rows.

    Axes of tokens, which come first, are padded with `IGNORE_INDEX` on the side on which tokens are padded.
    """
    token_axes = axes.count("tokens")
    if not token_axes:
        return np.stack(list(targets))
    width = max(len(target) for target in targets)
    shape = (len(targets), *[width] * token_axes, *targets[0].shape[token_axes:])
    stacked = np.full(shape, IGNORE_INDEX, dtype=targets[0].dtype)
    for index, target in enumerate(targets):
        stacked[index][(tokenizer.token_slice(len(target), width),) * token_axes] = target
    return stacked


def model_inputs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of a batch that a model reads, without targets.

    The decoder of an encoder-decoder model reads the targets shifted by one token.
    """
    names = input_names(model)
    tensors = {name: tensor for name, tensor in batch.items() if name in names and name != "labels"}
    if "labels" in batch and hasattr(model, SHIFT_METHOD):
        tensors["decoder_input_ids"] = getattr(model, SHIFT_METHOD)(batch["labels"])
    return tensors


def padded_batches(problem: Problem, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yields padded batches of rows of similar length, short ones first; see `collate`."""
    for indices in group_by_length([len(row) for row in rows], MAX_BATCH_TOKENS):
        yield collate(problem, [rows[index] for index in indices])


def validation_metrics(model: torch.nn.Module, problem: Problem, name: str) -> dict[str, float]:
    """Returns the task's metrics of a model on the validation examples, as the stages compute them.

    What the task tunes on these examples, such as thresholds, is tuned for this model first. Otherwise all models with
    low probabilities would get the same metrics.

    Args:
        model: the model in memory.
        problem: the examples and the task.
        name: of the model in messages.

    Raises:
        ModelError: predictions are NaN or infinite.
    """
    task, spec = problem.task, problem.spec
    execution = Execution(engine="torch", threads=torch.get_num_threads(), batch_tokens=MAX_BATCH_TOKENS)
    predictor = Predictor(task, spec, problem.tokenizer, TorchModel(model, execution))
    predictions = predictor.predict([example.input for example in problem.validation])
    if not are_finite(task.dump(predictions)):
        raise ModelError(f"{name}: logits of the validation split are NaN or infinite. {DIVERGENCE_ADVICE}")
    spec = tune_spec(task, spec, problem.validation, predictions)
    return metrics.compute(task.METRICS, metrics.Outcomes.of(task, spec, problem.validation, predictions))


def first_metric(model: torch.nn.Module, problem: Problem) -> float:
    """Returns the first of the task's metrics for a model that is being pruned; see `validation_metrics`."""
    return validation_metrics(model, problem, "the model during pruning")[problem.task.METRICS[0]]


def sample(rows: tuple[Row, ...], count: int, seed: int) -> list[Row]:
    """Draws at most `count` rows without replacement."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:count]]


def first_rows_within(rows: list[Row], tokens: int) -> list[Row]:
    """Returns the first rows that together have at most `tokens` tokens; at least one row."""
    token_sums = np.cumsum([len(row) for row in rows])
    return rows[: max(1, int((token_sums <= tokens).sum()))]


def balanced_weights(problem: Problem) -> torch.Tensor | None:
    """Returns a weight for each label, `(labels,)`: `targets / (labels * targets with this label)`.

    So all labels have the same total weight (King and Zeng, 2001). Returns None for tasks whose targets are not labels.
    """
    ((name, target), *others) = problem.task.TARGETS.items()
    if others or target.loss != "cross_entropy":
        return None
    targets = np.concatenate([row.targets[name].reshape(-1) for row in problem.train])
    counts = np.bincount(targets[targets != IGNORE_INDEX], minlength=len(problem.spec.labels))
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)
