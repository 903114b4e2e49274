"""Measures the importance of heads and neurons, as Fisher information.

The inputs of the output projections of attention and feed-forward are multiplied by masks of ones, with one entry for
each head or neuron. The squared gradient of the loss with respect to a mask, summed over rows, is the diagonal of the
empirical Fisher information. It estimates how much the loss changes if the head or neuron is removed (Kwon et al.,
2022, section 4.1).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deploykit.errors import ModelError
from deploykit.modeling import surgery
from deploykit.modeling.losses import task_loss
from deploykit.modeling.problem import Problem, Row, model_inputs, padded_batches


def importance(
    model: torch.nn.Module, problem: Problem, rows: Sequence[Row]
) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Returns the Fisher information of heads and of neurons.

    Args:
        model: the model in memory.
        problem: its task names the loss.
        rows: the rows on which the gradients are computed.

    Returns:
        An array of heads for each layer, `(heads,)`, empty if heads cannot be pruned; and an array of neurons for each
        layer, `(neurons,)`.

    Raises:
        ModelError: a gradient is NaN or infinite.
    """
    layers = surgery.layers(model)
    output_projections = [layer.output_projection for layer in layers if layer.output_projection is not None]
    modules = [*output_projections, *(layer.down_projection for layer in layers)]
    head_counts = [layer.shape.heads for layer in layers if layer.output_projection is not None]
    unit_counts = [*head_counts, *(layer.shape.neurons for layer in layers)]
    totals = [torch.zeros(count) for count in unit_counts]
    loss = task_loss(problem.task)
    model.eval()
    for batch in tqdm(list(padded_batches(problem, rows)), desc="importance", unit="batch", disable=None):
        row_count = len(next(iter(batch.values())))
        masks = [torch.ones(row_count, 1, count, requires_grad=True) for count in unit_counts]
        with ExitStack() as hooks:
            for module, mask in zip(modules, masks, strict=True):
                hooks.callback(module.register_forward_pre_hook(_multiply_by(mask)).remove)
            outputs = model(**model_inputs(model, batch))
            # A target count of 1 makes the loss a sum over rows: the mask of each row gets the gradient of this row.
            loss_sum = loss(outputs, batch["labels"], torch.tensor(1))
        gradients = torch.autograd.grad(loss_sum, masks)
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


def _multiply_by(mask: torch.Tensor) -> Any:
    """Returns a hook that multiplies the input of a module, `(batch, tokens, columns)`, by a mask, `(batch, 1, units)`.

    Each unit is the same number of consecutive columns: one for a neuron, the size of a head for a head.
    """

    def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        columns_per_unit = inputs[0].shape[-1] // mask.shape[-1]
        return (inputs[0] * mask.repeat_interleave(columns_per_unit, dim=-1), *inputs[1:])

    return hook
