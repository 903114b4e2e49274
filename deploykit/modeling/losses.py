"""Losses by name."""

from typing import Any

import torch

from deploykit.modeling.finite import Loss
from deploykit.tasks import IGNORED


def cross_entropy(weights: torch.Tensor | None = None, smoothing: float = 0.0) -> Loss:
    """Returns the loss of a classifier of texts or of tokens.

    Args:
        weights: of the classes, shape `(labels,)`; default: all the same.
        smoothing: the share of probability spread over all labels (Szegedy et al., 2016, section 7).
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
