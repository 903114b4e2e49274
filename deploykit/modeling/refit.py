"""Refits the output projections of a pruned model to the outputs of the unpruned one.

For a projection with kept inputs `H` (tokens, kept) and the unpruned model's outputs `Y` (tokens, hidden), the new
weights minimize `|H W' + b - Y|^2 + penalty |W' - W|^2`: ridge regression towards the kept weights. Layers are refitted
in order, each on its inputs in the pruned model, so that later layers correct the errors of earlier ones. Kwon et al.
(2022, section 4.3) fit one factor per unit; a matrix is more general.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from tqdm import tqdm

from deploykit.modeling import surgery
from deploykit.modeling.problem import Row, inputs, padded
from deploykit.modeling.surgery import Linear, matrix, set_matrix
from deploykit.tasks import IGNORED
from deploykit.tokenizer import Tokenizer

PENALTY = 0.1  # relative to the mean square of the inputs


class _Stop(Exception):  # noqa: N818  not an error
    """Ends a forward pass once the module of interest has its inputs."""


def refit(small: torch.nn.Module, whole: torch.nn.Module, rows: Sequence[Row], tokenizer: Tokenizer) -> None:
    """Replaces the output projections of `small`, the pruned copy of `whole`, in place; padding is left out."""
    data = list(padded(rows, tokenizer))
    modules, sources = _projections(small), _projections(whole)
    targets = _outputs(whole, [source for source, _ in sources], data)
    changed = False
    pairs = tqdm(modules, desc="refit", disable=None)
    for (module, calls), (source, _), target in zip(pairs, sources, targets, strict=True):
        changed = changed or matrix(module).shape != matrix(source).shape
        if changed:  # before the first pruned projection, inputs and outputs are those of the unpruned model
            inputs = torch.cat([_inputs(small, module, calls, batch) for batch in data])
            bias = 0 if module.bias is None else module.bias.data
            set_matrix(module, ridge(inputs, target.float() - bias, matrix(module)))


def _projections(model: torch.nn.Module) -> list[tuple[Linear, int]]:
    """Returns the output projections of attentions and feed-forwards, in order, and how often each one runs."""
    return [
        (part, layer.repeats)
        for layer in surgery.layers(model)
        for part in (layer.projection, layer.down)
        if part is not None
    ]


def ridge(inputs: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor, penalty: float = PENALTY) -> torch.Tensor:
    """Returns the new weights, `(hidden, kept)`, in closed form.

    Args:
        inputs: `(tokens, kept)`.
        outputs: `(tokens, hidden)`, without the bias.
        weight: `(hidden, kept)`; the solution is pulled towards it.
        penalty: relative to the mean diagonal of the inputs' Gram matrix.
    """
    inputs, outputs = inputs.double(), outputs.double()
    gram = inputs.T @ inputs
    strength = penalty * gram.diagonal().mean() + torch.finfo(torch.float64).eps
    left = gram + strength * torch.eye(len(gram), dtype=torch.float64)
    right = inputs.T @ outputs + strength * weight.double().T
    solution: torch.Tensor = torch.linalg.solve(left, right)
    return solution.T.to(weight.dtype).contiguous()


@torch.inference_mode()
def _outputs(model: torch.nn.Module, modules: Sequence[torch.nn.Module], data: Sequence[Any]) -> list[torch.Tensor]:
    """Returns the outputs of each module without padding, `(tokens, hidden)`, in bfloat16 to halve the memory."""
    outputs: list[list[torch.Tensor]] = [[] for _ in modules]
    for batch in tqdm(data, desc="targets", unit="batch", disable=None):
        with ExitStack() as hooks:
            for module, rows in zip(modules, outputs, strict=True):
                hook = module.register_forward_hook(
                    lambda _, __, output, rows=rows, batch=batch: rows.append(output[_real(output, batch)].bfloat16())
                )
                hooks.callback(hook.remove)
            model(**inputs(model, batch))
    return [torch.cat(rows) for rows in outputs]


@torch.inference_mode()
def _inputs(model: torch.nn.Module, module: torch.nn.Module, calls: int, batch: Any) -> torch.Tensor:
    """Returns the inputs of a module in all its calls without padding, `(tokens, kept)`."""
    arrays: list[torch.Tensor] = []

    def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        arrays.append(arguments[0][_real(arguments[0], batch)])
        if len(arrays) == calls:
            raise _Stop

    handle = module.register_forward_pre_hook(hook)
    try:
        model(**inputs(model, batch))
    except _Stop:
        pass
    finally:
        handle.remove()
    return torch.cat(arrays)


def _real(states: torch.Tensor, batch: Any) -> torch.Tensor:
    """Returns which states, `(batch, tokens, size)`, are not padding; those of a decoder belong to the targets."""
    mask: torch.Tensor = batch["attention_mask"].bool()
    return mask if mask.shape == states.shape[:2] else batch["labels"] != IGNORED
