"""Losses, and the checks that weights, losses and logits are finite: the stage where NaN first appears must stop.

Later steps would hide it: the argmax of NaN logits is the first label, whose share of the rows looks like an accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from deploykit.errors import ModelError
from deploykit.tasks import IGNORE_INDEX, Arrays, Prediction, Target, Task

Loss = Callable[..., torch.Tensor]  # loss(outputs, labels, num_items_in_batch) -> scalar
# Largest absolute logit on the validation split; a trained model that exceeds it has diverged, and its stage stops.
# Pruned models, and models used without training, may exceed it: if parity fails in their export stage, its error
# blames float32, which is too coarse for `export.tolerance` at such values, and not the graph.
MAX_LOGIT = 1000.0
ADVICE = "Lower learning_rate; if it is low already, set bf16: off, or look for the rows that cause it."


def of_task(task: Task, weights: torch.Tensor | None = None, smoothing: float = 0.0) -> Loss:
    """Returns the loss of a task: the sum of the losses of its targets.

    Args:
        task: names the loss of each of its `TARGETS`.
        weights: of the labels, shape `(labels,)`, for cross-entropy; default: all equal.
        smoothing: share of the probability that cross-entropy spreads over all labels (Szegedy et al., 2016, section
            7).
    """

    def loss(outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        named = by_name(task, labels)
        total = torch.zeros((), device=next(iter(named.values())).device)
        for name, target in task.TARGETS.items():
            summed, count = LOSSES[target.loss](outputs[target.output], named[name], weights, smoothing)
            if num_items_in_batch is not None:  # of a step of several batches
                count = torch.as_tensor(num_items_in_batch, device=total.device)
            total = total + summed / count.clamp(min=1)  # a batch may hold no target
        return total

    return loss


def by_name(task: Task, labels: Any) -> dict[str, torch.Tensor]:
    """Returns the targets of a batch by name; a single target is a tensor, so that the Trainer can count it."""
    return labels if isinstance(labels, dict) else {next(iter(task.TARGETS)): labels}


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the summed cross-entropy and the number of targets.

    Args:
        logits: `(..., labels)`.
        targets: indices of labels, `(...)`, some of them `IGNORE_INDEX`.
        weights: of the labels; default: all equal.
        smoothing: share of the probability that is spread over all labels.
    """
    summed = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        weight=None if weights is None else weights.to(logits.device),
        ignore_index=IGNORE_INDEX,
        label_smoothing=smoothing,
        reduction="sum",
    )
    return summed, (targets != IGNORE_INDEX).sum()


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the summed binary cross-entropy of labels that do not exclude each other, and the number of targets.

    Args:
        logits: `(..., labels)`.
        targets: 0 or 1 for each, or probabilities; the same shape, NaN where there is none.
        weights: of the labels that are 1; default: all equal.
        smoothing: how far targets are moved towards one half.
    """
    exist = ~targets.isnan()
    smooth = targets.float().nan_to_num() * (1 - smoothing) + smoothing / 2
    weights = None if weights is None else weights.to(logits.device)
    losses = functional.binary_cross_entropy_with_logits(logits.float(), smooth, pos_weight=weights, reduction="none")
    return (losses * exist).sum(), exist.sum()


def squared_error(logits: torch.Tensor, targets: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the summed squared error of numbers of the same shape, and how many there are; NaN is none."""
    exist = ~targets.isnan()
    errors = (logits.float().reshape(targets.shape) - targets.float().nan_to_num()) ** 2
    return (errors * exist).sum(), exist.sum()


def is_learned(target: Target, targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Returns which rows of an output, `(..., labels)`, have a target, `(...)`."""
    if target.loss == "cross_entropy":
        return targets != IGNORE_INDEX
    missing = targets.isnan()
    return ~(missing.any(dim=-1) if missing.dim() == logits.dim() else missing)


LOSSES = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
}


def divergence(loss: str, student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Returns how far a student's logits are from its teacher's, averaged over rows, as the loss of the task has it.

    Args:
        loss: a key of `LOSSES`: for cross-entropy `T^2 KL(teacher || student)`, for binary cross-entropy the same of
            each label, and for the squared error the squared difference.
        student: logits `(rows, labels)`.
        teacher: the same shape.
        temperature: of both models' logits.
    """
    first, second = student.float() / temperature, teacher.float() / temperature
    if loss == "squared_error":
        return functional.mse_loss(student.float(), teacher.float())
    if loss == "binary_cross_entropy":
        first, second = (torch.stack([logits, torch.zeros_like(logits)], dim=-1) for logits in (first, second))
        shape = (-1, 2)
        first, second = first.reshape(shape), second.reshape(shape)
    predicted, expected = (functional.log_softmax(logits, dim=-1) for logits in (first, second))
    return functional.kl_div(predicted, expected, reduction="batchmean", log_target=True) * temperature**2


def checked(loss: Loss, when: Callable[[], str]) -> Loss:
    """Returns a loss that raises a ModelError if it is not finite; `when` names the step for the message."""

    def run(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        value = loss(outputs, labels, num_items_in_batch)
        if value.requires_grad and not torch.isfinite(value):  # in training; `quality` checks logits of evaluation
            raise ModelError(f"the loss is {value.item():g} {when()}: training diverged. {ADVICE}")
        return value

    return run


def require_weights(model: torch.nn.Module, name: str) -> None:
    """Raises a ModelError for the first parameter of a model with NaN or infinite weights."""
    for parameter, values in model.named_parameters():
        if count := values.numel() - int(torch.isfinite(values).sum()):
            raise ModelError(
                f"{name}: {count} of {values.numel()} values of the parameter {parameter!r} are NaN or infinite. The"
                " file is damaged, or its training diverged: take another copy, or an earlier checkpoint."
            )


def require_finite(task: Task, predictions: Mapping[str, Sequence[Prediction]], name: str) -> None:
    """Raises a ModelError if predictions, by split, hold NaN or infinite numbers."""
    for split, rows in predictions.items():
        if count := sum(not are_finite(task.dump([row])) for row in rows):
            raise ModelError(
                f"{name} gives NaN or infinite logits for {count} of {len(rows)} texts of the {split} split."
                " Its weights are too large: take another copy, or train it with a lower learning_rate."
            )


def are_finite(arrays: Arrays) -> bool:
    """Says whether the floating-point arrays of predictions are free of NaN and infinity."""
    return all(np.isfinite(array).all() for array in arrays.values() if np.issubdtype(array.dtype, np.floating))


def largest(arrays: Arrays) -> float:
    """Returns the largest absolute value of the floating-point arrays of predictions; 0 if there is none."""
    logits = (array for array in arrays.values() if np.issubdtype(array.dtype, np.floating))
    return max((float(np.abs(array).max(initial=0.0)) for array in logits), default=0.0)
