"""Losses, and the checks that weights, losses and logits are finite: the stage where NaN first appears must stop.

Later steps would hide it: the argmax of NaN logits is the first label, whose share of the rows looks like an accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from deploykit.errors import ModelError
from deploykit.tasks import IGNORED, Arrays, Prediction, Task

Loss = Callable[..., torch.Tensor]  # loss(outputs, labels, num_items_in_batch) -> scalar
# Largest absolute logit on the validation split; a trained model that exceeds it has diverged, and its stage stops.
# Pruned models, and models used without training, may exceed it: if parity fails in their export stage, its error
# blames float32, which is too coarse for `export.tolerance` at such values, and not the graph.
MAX_LOGIT = 1000.0
ADVICE = "Lower learning_rate; if it is low already, set bf16: off, or look for the rows that cause it."


def cross_entropy(weights: torch.Tensor | None = None, smoothing: float = 0.0) -> Loss:
    """Returns the loss of a classifier of texts or of tokens.

    Args:
        weights: of the classes, shape `(labels,)`; default: all equal.
        smoothing: share of the probability that is spread over all labels (Szegedy et al., 2016, section 7).
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        summed = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1),
            weight=None if weights is None else weights.to(logits.device),
            ignore_index=IGNORED,
            label_smoothing=smoothing,
            reduction="sum",
        )
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return summed / torch.as_tensor(count).clamp(min=1)  # a batch may hold no target

    return loss


def checked(loss: Loss, when: Callable[[], str]) -> Loss:
    """Returns a loss that raises a ModelError if it is not finite; `when` names the step for the message."""

    def run(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        value = loss(outputs, labels, num_items_in_batch)
        if value.requires_grad and not torch.isfinite(value):
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


def require_logits(logits: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], name: str) -> None:
    """Raises a ModelError if logits, `(..., labels)`, are NaN or infinite where a target, `(...)`, is not `IGNORED`."""
    if not np.isfinite(logits[targets != IGNORED]).all():
        raise ModelError(f"{name}: logits of the validation split are NaN or infinite. {ADVICE}")


def require_finite(task: Task, predictions: Mapping[str, Sequence[Prediction]], name: str) -> None:
    """Raises a ModelError if predictions, by split, hold NaN or infinite numbers."""
    for split, rows in predictions.items():
        if count := sum(not all(np.isfinite(array).all() for array in task.dump([row]).values()) for row in rows):
            raise ModelError(
                f"{name} gives NaN or infinite logits for {count} of {len(rows)} texts of the {split} split."
                " Its weights are too large: take another copy, or train it with a lower learning_rate."
            )


def largest(arrays: Arrays) -> float:
    """Returns the largest absolute value of the floating-point arrays of predictions; 0 if there is none."""
    logits = (array for array in arrays.values() if np.issubdtype(array.dtype, np.floating))
    return max((float(np.abs(array).max(initial=0.0)) for array in logits), default=0.0)
