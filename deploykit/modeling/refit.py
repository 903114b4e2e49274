"""Refits the output projections of a pruned model to the outputs of the unpruned one.

For a projection with kept inputs `H` (tokens, kept) and the unpruned model's outputs `Y` (tokens, hidden), the new
weights minimize `|H W' + b - Y|^2 + penalty |W' - W|^2`: ridge regression towards the kept weights. Layers are refitted
in order, each on its inputs in the pruned model, so that later layers correct the errors of earlier ones. Kwon et al.
(2022, section 4.3) fit one factor per unit; a matrix is more general.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from math import inf
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from deploykit.modeling import surgery
from deploykit.modeling.problem import SHIFT, Problem, Row, inputs, padded
from deploykit.modeling.surgery import Linear, matrix, set_matrix
from deploykit.tasks import IGNORE_INDEX

PENALTY = 0.1  # relative to the mean square of the inputs


class _Stop(Exception):  # noqa: N818  not an error
    """Ends a forward pass once the module of interest has its inputs."""


def refit(small: torch.nn.Module, whole: torch.nn.Module, problem: Problem, rows: Sequence[Row]) -> None:
    """Replaces the output projections of `small`, the pruned copy of `whole`, in place; padding is left out."""
    data = list(padded(problem, rows))
    projections, sources = _projections(small), _projections(whole)
    targets = _outputs(whole, sources, data)
    changed = False
    progress = tqdm(projections, desc="refit", disable=None)
    for projection, source, target in zip(progress, sources, targets, strict=True):
        module = projection.module
        changed = changed or matrix(module).shape != matrix(source.module).shape
        if changed:  # before the first pruned projection, inputs and outputs are those of the unpruned model
            states = torch.cat([_inputs(small, projection, batch) for batch in data])
            bias = 0 if module.bias is None else module.bias.data
            set_matrix(module, ridge(states, target.float() - bias, matrix(module)))


class _Projection(NamedTuple):
    """An output projection of an attention or a feed-forward; `runs` in each forward pass."""

    module: Linear
    runs: int
    reads_targets: bool  # in the decoder of a model that writes a text after reading another


def _projections(model: torch.nn.Module) -> list[_Projection]:
    """Returns the output projections in the order in which they run."""
    encoder_layers = surgery.depths(model)[0] if hasattr(model, SHIFT) else inf
    return [
        _Projection(module, layer.repeats, index >= encoder_layers)
        for index, layer in enumerate(surgery.layers(model))
        for module in (layer.projection, layer.down)
        if module is not None
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
def _outputs(model: torch.nn.Module, projections: Sequence[_Projection], data: Sequence[Any]) -> list[torch.Tensor]:
    """Returns the outputs of each projection without padding, `(tokens, hidden)`, in bfloat16 to halve the memory."""
    outputs: list[list[torch.Tensor]] = [[] for _ in projections]
    for batch in tqdm(data, desc="targets", unit="batch", disable=None):
        with ExitStack() as hooks:
            for projection, rows in zip(projections, outputs, strict=True):
                mask = _mask(batch, projection)
                hook = projection.module.register_forward_hook(
                    lambda _, __, output, rows=rows, mask=mask: rows.append(output[mask].bfloat16())
                )
                hooks.callback(hook.remove)
            model(**inputs(model, batch))
    return [torch.cat(rows) for rows in outputs]


@torch.inference_mode()
def _inputs(model: torch.nn.Module, projection: _Projection, batch: Any) -> torch.Tensor:
    """Returns the inputs of a projection in all its runs without padding, `(tokens, kept)`."""
    arrays: list[torch.Tensor] = []
    mask = _mask(batch, projection)

    def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        arrays.append(arguments[0][mask])
        if len(arrays) == projection.runs:
            raise _Stop

    handle = projection.module.register_forward_pre_hook(hook)
    try:
        model(**inputs(model, batch))
    except _Stop:
        pass
    finally:
        handle.remove()
    return torch.cat(arrays)


def _mask(batch: Any, projection: _Projection) -> torch.Tensor:
    """Returns which positions of a projection's inputs are not padding, `(batch, positions)`.

    The decoder of a model that writes a text after reading another has one position for each target, whose padding is
    `IGNORE_INDEX`; every other stack has one for each input token.
    """
    if projection.reads_targets:
        return torch.as_tensor(batch["labels"] != IGNORE_INDEX)
    return torch.as_tensor(batch["attention_mask"].bool())
