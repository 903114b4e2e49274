"""Refits the output projections of a pruned model to the outputs of the unpruned one.

For a projection with the weights `W`, the bias `b`, kept inputs `H` (tokens, kept) and the unpruned model's outputs `Y`
(tokens, hidden), the new weights `W'` minimize `|H W' + b - Y|^2 + penalty |W' - W|^2`. This is ridge regression
towards the weights that pruning kept. Projections are refitted in the order in which they run, each on its inputs in
the pruned model, so that later ones correct the errors of earlier ones. Kwon et al. (2022, section 4.3) fit one factor
per unit; a matrix is more general.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from math import inf
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from deploykit.modeling import surgery
from deploykit.modeling.problem import SHIFT_METHOD, Problem, Row, model_inputs, padded_batches
from deploykit.modeling.surgery import Linear, matrix, set_matrix
from deploykit.tasks import IGNORE_INDEX

RELATIVE_PENALTY = 0.1  # default penalty, as a share of the mean diagonal of the inputs' Gram matrix


class _Stop(Exception):  # noqa: N818  not an error
    """Ends a forward pass as soon as the inputs of a projection are recorded."""


def refit(pruned: torch.nn.Module, unpruned: torch.nn.Module, problem: Problem, rows: Sequence[Row]) -> None:
    """Replaces the output projections of a pruned model in place.

    Args:
        pruned: a pruned copy of `unpruned`.
        unpruned: the unpruned model, which gives the outputs to fit.
        problem: pads the rows.
        rows: the data of the regression, without padding.
    """
    batches = list(padded_batches(problem, rows))
    projections, unpruned_projections = _projections(pruned), _projections(unpruned)
    unpruned_outputs = _record_outputs(unpruned, unpruned_projections, batches)
    is_after_pruned = False
    progress = tqdm(projections, desc="refit", disable=None)
    for projection, source, outputs in zip(progress, unpruned_projections, unpruned_outputs, strict=True):
        module = projection.module
        # Before the first pruned projection, inputs and outputs are those of the unpruned model.
        is_after_pruned = is_after_pruned or matrix(module).shape != matrix(source.module).shape
        if is_after_pruned:
            inputs = torch.cat([_record_inputs(pruned, projection, batch) for batch in batches])
            bias = 0 if module.bias is None else module.bias.data
            set_matrix(module, ridge(inputs, outputs.float() - bias, matrix(module)))


class _Projection(NamedTuple):
    """The output projection of an attention or of a feed-forward."""

    module: Linear
    runs: int  # how often it runs in a forward pass
    reads_targets: bool  # whether it is in the decoder of an encoder-decoder model, whose inputs are the targets


def _projections(model: torch.nn.Module) -> list[_Projection]:
    """Returns the output projections in the order in which they run."""
    encoder_layers = surgery.depths(model)[0] if hasattr(model, SHIFT_METHOD) else inf
    return [
        _Projection(module, layer.runs, index >= encoder_layers)
        for index, layer in enumerate(surgery.layers(model))
        for module in (layer.output_projection, layer.down_projection)
        if module is not None
    ]


def ridge(
    inputs: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor, penalty: float = RELATIVE_PENALTY
) -> torch.Tensor:
    """Returns the weights of the ridge regression, `(hidden, kept)`, in closed form.

    Args:
        inputs: `(tokens, kept)`.
        outputs: `(tokens, hidden)`, without the bias.
        weight: `(hidden, kept)`; the solution is pulled towards it.
        penalty: as a share of the mean diagonal of the inputs' Gram matrix.
    """
    inputs, outputs = inputs.double(), outputs.double()
    gram = inputs.T @ inputs
    strength = penalty * gram.diagonal().mean() + torch.finfo(torch.float64).eps
    left = gram + strength * torch.eye(len(gram), dtype=torch.float64)
    right = inputs.T @ outputs + strength * weight.double().T
    solution: torch.Tensor = torch.linalg.solve(left, right)
    return solution.T.to(weight.dtype).contiguous()


@torch.inference_mode()
def _record_outputs(
    model: torch.nn.Module, projections: Sequence[_Projection], data: Sequence[Any]
) -> list[torch.Tensor]:
    """Returns the outputs of each projection without padding, `(tokens, hidden)`, in bfloat16, which halves the memory.

    Those of a projection that runs several times in a forward pass come one run after another in each batch.
    """
    outputs: list[list[torch.Tensor]] = [[] for _ in projections]
    for batch in tqdm(data, desc="targets", unit="batch", disable=None):
        with ExitStack() as hooks:
            for projection, rows in zip(projections, outputs, strict=True):
                mask = _mask(batch, projection)
                hook = projection.module.register_forward_hook(
                    lambda _, __, output, rows=rows, mask=mask: rows.append(output[mask].bfloat16())
                )
                hooks.callback(hook.remove)
            model(**model_inputs(model, batch))
    return [torch.cat(rows) for rows in outputs]


@torch.inference_mode()
def _record_inputs(model: torch.nn.Module, projection: _Projection, batch: Any) -> torch.Tensor:
    """Returns the inputs of a projection without padding, `(tokens, kept)`, those of all its runs one after another."""
    recorded: list[torch.Tensor] = []
    mask = _mask(batch, projection)

    def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        recorded.append(arguments[0][mask])
        if len(recorded) == projection.runs:
            raise _Stop

    handle = projection.module.register_forward_pre_hook(hook)
    try:
        model(**model_inputs(model, batch))
    except _Stop:
        pass
    finally:
        handle.remove()
    return torch.cat(recorded)


def _mask(batch: Any, projection: _Projection) -> torch.Tensor:
    """Returns a mask of the positions of a projection's inputs that are not padding, `(batch, positions)`.

    The decoder of an encoder-decoder model has a position for each target, and its padding is `IGNORE_INDEX`.
    Every other stack has a position for each input token.
    """
    if projection.reads_targets:
        return torch.as_tensor(batch["labels"] != IGNORE_INDEX)
    return torch.as_tensor(batch["attention_mask"].bool())
