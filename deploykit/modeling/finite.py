"""Weights, losses and logits must be numbers. What is none of them stops the stage in which it first appears.

Nothing later says so: the largest of logits that are no numbers is the first label, whose share of the rows then looks
like an accuracy, and the comparison after an export finds an infinite difference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from deploykit.errors import ModelError
from deploykit.tasks import IGNORED, Float32

Loss = Callable[..., torch.Tensor]
LARGEST_LOGIT = (
    1000.0  # of a classifier that has learned; from there on float32 is too coarse for an export's tolerance
)
ADVICE = "Lower learning_rate; if it is low already, set bf16: off, or look for the rows that cause it."


def require_weights(model: torch.nn.Module, name: str) -> None:
    """Refuses a model with a weight that is no number.

    Args:
        model: in memory.
        name: of the model, for the message.

    Raises:
        ModelError: names the first parameter with such a weight.
    """
    for parameter, values in model.named_parameters():
        if count := values.numel() - int(torch.isfinite(values).sum()):
            raise ModelError(
                f"{name}: the parameter {parameter!r} holds {count} value{'s' if count > 1 else ''} that"
                f" {'are no numbers' if count > 1 else 'is no number'} (NaN or infinite) among {values.numel()}. The"
                " file is damaged, or its training diverged: take another copy, or an earlier checkpoint."
            )


def checked(loss: Loss, when: Callable[[], str]) -> Loss:
    """Returns the loss, which then stops learning where it is no number.

    Args:
        loss: `loss(outputs, labels, num_items_in_batch) -> scalar`.
        when: names the step, for the message; called where the loss is no number.
    """

    def run(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        value = loss(outputs, labels, num_items_in_batch)
        if value.requires_grad and not torch.isfinite(value):
            raise ModelError(f"the loss is {value.item():g} {when()}: training diverged. {ADVICE}")
        return value

    return run


def require_logits(logits: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], what: str) -> None:
    """Refuses logits that are no numbers where there is a target.

    Args:
        logits: `(rows, labels)` or `(rows, tokens, labels)`.
        targets: `(rows,)` or `(rows, tokens)`, `IGNORED` where there is none.
        what: gave them, for the message.

    Raises:
        ModelError: one of them is NaN or infinite.
    """
    if not np.isfinite(logits[targets != IGNORED]).all():
        raise ModelError(f"{what}: the logits of the validation split are no numbers (NaN or infinite). {ADVICE}")


def largest(rows: Sequence[Float32]) -> float:
    """Returns the largest absolute score; 0 where there is none."""
    return max((float(np.abs(row).max(initial=0.0)) for row in rows), default=0.0)


def require_scores(scores: Mapping[str, Sequence[Float32]], name: str) -> None:
    """Refuses a model whose scores are no numbers.

    Args:
        scores: of each split, one array `(units, labels)` a text.
        name: of the model, for the message.

    Raises:
        ModelError: says for how many texts of a split they are NaN or infinite.
    """
    for split, rows in scores.items():
        if wrong := sum(not np.isfinite(row).all() for row in rows):
            raise ModelError(
                f"{name} gives no numbers for {wrong} of {len(rows)} texts of the {split} split (NaN or infinite"
                " logits). Its weights are too large: take another copy, or train it with a lower learning_rate."
            )
