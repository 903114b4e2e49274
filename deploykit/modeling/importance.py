"""Fisher information of heads and neurons.

A mask of ones multiplies the input of each output projection, one entry a head or a neuron. The squared
gradient of the loss by that mask, summed over rows, is the diagonal of the empirical Fisher information:
how much the loss would change if the head or neuron went (Kwon et al., 2022, section 4.1).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deploykit.errors import ModelError
from deploykit.inference.predictor import batches
from deploykit.modeling import surgery
from deploykit.modeling.losses import cross_entropy
from deploykit.modeling.problem import Row, collate, inputs
from deploykit.tokenizer import Tokenizer

BATCH_TOKENS = 2048


def importance(
    model: torch.nn.Module, rows: Sequence[Row], tokenizer: Tokenizer
) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Returns the Fisher information of the heads (of some layers none) and of the neurons, one array a layer each.

    Raises:
        ModelError: a gradient is no number.
    """
    found = surgery.layers(model)
    modules = [layer.projection for layer in found if layer.projection is not None] + [layer.down for layer in found]
    groups = [layer.shape.heads for layer in found if layer.shape.heads] + [layer.shape.neurons for layer in found]
    totals = [torch.zeros(size) for size in groups]
    loss = cross_entropy()
    model.eval()
    for batch in tqdm(list(padded(rows, tokenizer)), desc="importance", unit="batch", disable=None):
        masks = [torch.ones(len(batch["labels"]), 1, size, requires_grad=True) for size in groups]
        with ExitStack() as hooks:
            for module, mask in zip(modules, masks, strict=True):
                hooks.callback(module.register_forward_pre_hook(_multiply(mask)).remove)
            # a sum over rows, so that each row's mask gets that row's own gradient
            outputs = model(**inputs(model, batch))
            value = loss(outputs, batch["labels"], torch.tensor(1))
        gradients = torch.autograd.grad(value, masks)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.float().square().sum(dim=(0, 1))
    if not all(total.isfinite().all() for total in totals):
        raise ModelError(
            "the importance of heads and neurons cannot be measured: gradients of the model are no numbers (NaN or"
            " infinite). Train it with a lower learning_rate, or set prune: null."
        )
    arrays = iter([total.numpy().astype(np.float64) for total in totals])
    heads = [next(arrays) if layer.shape.heads else np.zeros(0) for layer in found]
    return heads, list(arrays)


def _multiply(mask: torch.Tensor) -> Any:
    """Returns a hook that scales groups of columns, `(batch, tokens, groups * size)`, by the mask."""

    def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        columns = inputs[0].shape[-1] // mask.shape[-1]
        return (inputs[0] * mask.repeat_interleave(columns, dim=-1), *inputs[1:])

    return hook


def padded(rows: Sequence[Row], tokenizer: Tokenizer) -> Iterator[dict[str, torch.Tensor]]:
    """Yields batches of rows of similar length, targets included."""
    for indices in batches([len(row.encoding) for row in rows], BATCH_TOKENS):
        yield collate(tokenizer, [rows[index] for index in indices])
