"""Losses of tasks, and checks that weights, losses and logits are finite.

The stage in which NaN first appears must stop, because later steps would hide it: the argmax of NaN logits is the first
label, and the share of rows with this label looks like an accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from deploykit.errors import ModelError
from deploykit.tasks import IGNORE_INDEX, Arrays, Prediction, Target, Task

# A loss takes the model's outputs, the labels and `num_items_in_batch`, and returns a scalar. The last argument is the
# number of targets of a whole step; None: that of the batch.
Loss = Callable[..., torch.Tensor]
# The largest absolute logit that a trained model may have on the validation split. Beyond it training has diverged, and
# the stage stops. Pruned models, and models that are used without training, may exceed it. If their graph then differs
# from torch by more than `export.tolerance`, the message blames float32, which is too coarse for such logits.
MAX_LOGIT = 1000.0
DIVERGENCE_ADVICE = "Lower learning_rate; if it is low already, set bf16: off, or look for the rows that cause it."


def task_loss(task: Task, weights: torch.Tensor | None = None, smoothing: float = 0.0) -> Loss:
    """Returns the loss function of a task, which adds the mean losses of its targets.

    Args:
        task: names the loss of each of its `TARGETS`.
        weights: of the labels, shape `(labels,)`, for cross-entropy; default: all equal.
        smoothing: share of the probability that cross-entropy spreads over all labels (Szegedy et al., 2016, section
            7).
    """

    def loss(outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        targets = targets_by_name(task, labels)
        total = torch.zeros((), device=next(iter(targets.values())).device)
        for name, target in task.TARGETS.items():
            loss_sum, count = LOSSES[target.loss](outputs[target.output], targets[name], weights, smoothing)
            if num_items_in_batch is not None:
                count = torch.as_tensor(num_items_in_batch, device=total.device)
            total = total + loss_sum / count.clamp(min=1)  # a batch may hold no target
        return total

    return loss


def targets_by_name(task: Task, labels: Any) -> dict[str, torch.Tensor]:
    """Returns the targets of a batch by name.

    Args:
        task: names its `TARGETS`.
        labels: a dict of tensors by name, or one tensor if the task has one target; the Trainer counts the targets of a
            tensor.
    """
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
    loss_sum = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        weight=None if weights is None else weights.to(logits.device),
        ignore_index=IGNORE_INDEX,
        label_smoothing=smoothing,
        reduction="sum",
    )
    return loss_sum, (targets != IGNORE_INDEX).sum()


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the summed binary cross-entropy of labels that do not exclude each other, and the number of targets.

    Args:
        logits: `(..., labels)`.
        targets: 0, 1 or a probability for each logit; NaN where there is no target.
        weights: of each label where its target is 1; default: all equal.
        smoothing: share by which targets are moved towards one half.
    """
    is_present = ~targets.isnan()
    smoothed = targets.float().nan_to_num() * (1 - smoothing) + smoothing / 2
    weights = None if weights is None else weights.to(logits.device)
    losses = functional.binary_cross_entropy_with_logits(logits.float(), smoothed, pos_weight=weights, reduction="none")
    return (losses * is_present).sum(), is_present.sum()


def squared_error(logits: torch.Tensor, targets: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the summed squared error and the number of targets.

    Args:
        logits: the predicted numbers, as many as targets.
        targets: NaN where there is no target.
    """
    is_present = ~targets.isnan()
    errors = (logits.float().reshape(targets.shape) - targets.float().nan_to_num()) ** 2
    return (errors * is_present).sum(), is_present.sum()


def has_target(target: Target, targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Returns a mask of the rows of an output that have a target, `(...)`.

    Args:
        target: names the loss.
        targets: `(...)`, or `(..., labels)` if each label has a target of its own.
        logits: `(..., labels)`.
    """
    if target.loss == "cross_entropy":
        return targets != IGNORE_INDEX
    is_missing = targets.isnan()
    return ~(is_missing.any(dim=-1) if is_missing.dim() == logits.dim() else is_missing)


LOSSES = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
}


def divergence(loss: str, student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Returns how far a student's logits are from its teacher's, as a mean over rows.

    It depends on the loss of the task: `T^2 KL(teacher || student)` for cross-entropy, the same with each label as a
    row of its own for binary cross-entropy, and the squared difference for the squared error.

    Args:
        loss: a key of `LOSSES`.
        student: logits `(rows, labels)`.
        teacher: logits of the same shape.
        temperature: T, by which the logits of both models are divided; not used for the squared error.
    """
    if loss == "squared_error":
        return functional.mse_loss(student.float(), teacher.float())
    student, teacher = student.float() / temperature, teacher.float() / temperature
    if loss == "binary_cross_entropy":  # softmax of a logit and 0 is the sigmoid of the logit
        student, teacher = (
            torch.stack([logits, torch.zeros_like(logits)], dim=-1).reshape(-1, 2) for logits in (student, teacher)
        )
    actual, expected = (functional.log_softmax(logits, dim=-1) for logits in (student, teacher))
    return functional.kl_div(actual, expected, reduction="batchmean", log_target=True) * temperature**2


def with_finite_check(loss: Loss, describe_step: Callable[[], str]) -> Loss:
    """Returns a loss that raises a ModelError in training if its value is NaN or infinite.

    Args:
        loss: computes the value.
        describe_step: says for the message at which step training is.
    """

    def checked_loss(outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        value = loss(outputs, labels, num_items_in_batch)
        # Only in training; in evaluation, `validation_metrics` checks the logits.
        if value.requires_grad and not torch.isfinite(value):
            raise ModelError(f"the loss is {value.item():g} {describe_step()}: training diverged. {DIVERGENCE_ADVICE}")
        return value

    return checked_loss


def require_finite_weights(model: torch.nn.Module, name: str) -> None:
    """Raises a ModelError if a parameter of the model `name` has NaN or infinite weights."""
    for parameter, values in model.named_parameters():
        if count := values.numel() - int(torch.isfinite(values).sum()):
            raise ModelError(
                f"{name}: {count} of {values.numel()} values of the parameter {parameter!r} are NaN or infinite. The"
                " file is damaged, or its training diverged: take another copy, or an earlier checkpoint."
            )


def require_finite_predictions(task: Task, predictions: Mapping[str, Sequence[Prediction]], name: str) -> None:
    """Raises a ModelError if the predictions of the model `name`, by split, hold NaN or infinite numbers."""
    for split, rows in predictions.items():
        if count := sum(not are_finite(task.dump([row])) for row in rows):
            raise ModelError(
                f"{name} gives NaN or infinite logits for {count} of {len(rows)} texts of the {split} split."
                " Its weights are too large: take another copy, or train it with a lower learning_rate."
            )


def are_finite(arrays: Arrays) -> bool:
    """Says whether the floating-point arrays of predictions are free of NaN and infinity."""
    return all(np.isfinite(array).all() for array in arrays.values() if np.issubdtype(array.dtype, np.floating))


def max_magnitude(arrays: Arrays) -> float:
    """Returns the largest absolute value of the floating-point arrays of predictions; 0 if there is none."""
    logits = (array for array in arrays.values() if np.issubdtype(array.dtype, np.floating))
    return max((float(np.abs(array).max(initial=0.0)) for array in logits), default=0.0)
