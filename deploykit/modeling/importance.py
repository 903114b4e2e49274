"""Fisher information of heads and neurons.

The input of each output projection is multiplied by a mask of ones, one per head or neuron. The squared gradient of the
loss with respect to the mask, summed over rows, is the diagonal of the empirical Fisher information: an estimate of how
much the loss changes if the head or neuron is removed (Kwon et al., 2022, section 4.1).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deploykit.errors import ModelError
from deploykit.modeling import surgery
from deploykit.modeling.losses import of_task
from deploykit.modeling.problem import Problem, Row, inputs, padded


def importance(
    model: torch.nn.Module, problem: Problem, rows: Sequence[Row]
) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Returns the Fisher information of heads and of neurons, an array per layer each; empty if heads cannot be pruned.

    Raises:
        ModelError: a gradient is NaN or infinite.
    """
    layers = surgery.layers(model)
    modules = [layer.projection for layer in layers if layer.projection is not None] + [layer.down for layer in layers]
    groups = [layer.shape.heads for layer in layers if layer.shape.heads] + [layer.shape.neurons for layer in layers]
    totals = [torch.zeros(size) for size in groups]
    loss = of_task(problem.task)
    model.eval()
    for batch in tqdm(list(padded(problem, rows)), desc="importance", unit="batch", disable=None):
        masks = [torch.ones(len(next(iter(batch.values()))), 1, size, requires_grad=True) for size in groups]
        with ExitStack() as hooks:
            for module, mask in zip(modules, masks, strict=True):
                hooks.callback(module.register_forward_pre_hook(_multiply(mask)).remove)
            outputs = model(**inputs(model, batch))
            # a count of 1 sums the loss over rows, so that the mask of each row gets the gradient of that row alone
            value = loss(outputs, batch["labels"], torch.tensor(1))
        gradients = torch.autograd.grad(value, masks)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.float().square().sum(dim=(0, 1))
    if not all(total.isfinite().all() for total in totals):
        raise ModelError(
            "the importance of heads and neurons cannot be measured: gradients of the model are NaN or infinite."
            " Train it with a lower learning_rate, or set prune: null."
        )
    arrays = iter([total.numpy().astype(np.float64) for total in totals])
    heads = [next(arrays) if layer.shape.heads else np.zeros(0) for layer in layers]
    return heads, list(arrays)


def _multiply(mask: torch.Tensor) -> Any:
    """Returns a hook that multiplies groups of columns, `(batch, tokens, groups * size)`, by the mask."""

    def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        columns = inputs[0].shape[-1] // mask.shape[-1]
        return (inputs[0] * mask.repeat_interleave(columns, dim=-1), *inputs[1:])

    return hook
