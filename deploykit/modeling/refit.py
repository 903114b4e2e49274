"""Refits what is left of each output projection to what the whole model computed there.

For a projection with kept inputs `H` (tokens, kept) and the whole model's outputs `Y` (tokens, hidden), the
new weights minimise `|H W' + b - Y|^2 + penalty |W' - W|^2`: ridge regression that pulls towards the kept
weights. Layers are done in order, each on what the smaller model itself feeds it, so that later layers make
up for earlier ones. Kwon et al. (2022, section 4.3) fit one factor a unit; a matrix includes that.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from tqdm import tqdm

from deploykit.modeling import surgery
from deploykit.modeling.importance import padded
from deploykit.modeling.problem import Row, inputs
from deploykit.modeling.surgery import Linear, matrix, set_matrix
from deploykit.tasks import IGNORED
from deploykit.tokenizer import Tokenizer

PENALTY = 0.1  # relative to the mean square of the inputs


class _Reached(Exception):  # noqa: N818  not an error: the forward pass has come far enough
    """Stops a forward pass at the module of interest."""


def refit(small: torch.nn.Module, whole: torch.nn.Module, rows: Sequence[Row], tokenizer: Tokenizer) -> None:
    """Replaces the output projections of `small`, in place.

    Args:
        small: the pruned copy.
        whole: the model before.
        rows: calibration rows; their padding is left out.
        tokenizer: pads them.
    """
    data = list(padded(rows, tokenizer))
    modules, sources = _projections(small), _projections(whole)
    targets = _outputs(whole, [source for source, _ in sources], data)
    before_all_cuts = True
    for (module, calls), (source, _), target in zip(
        tqdm(modules, desc="refit", disable=None), sources, targets, strict=True
    ):
        if before_all_cuts and matrix(module).shape == matrix(source).shape:
            continue  # nothing was cut up to here: inputs and outputs are the whole model's
        before_all_cuts = False
        inputs = torch.cat([_input(small, module, calls, batch) for batch in data])
        bias = 0 if module.bias is None else module.bias.data
        set_matrix(module, ridge(inputs, target.float() - bias, matrix(module)))


def _projections(model: torch.nn.Module) -> list[tuple[Linear, int]]:
    """Returns what leads out of every attention that was cut and every feed-forward, and how often each is run."""
    return [
        (part, layer.repeats)
        for layer in surgery.layers(model)
        for part in (layer.projection, layer.down)
        if part is not None
    ]


def ridge(inputs: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor, penalty: float = PENALTY) -> torch.Tensor:
    """Solves for the weights in closed form.

    Args:
        inputs: `(tokens, kept)`.
        outputs: `(tokens, hidden)`, without the bias.
        weight: `(hidden, kept)`, what the solution is pulled towards.
        penalty: relative to the mean diagonal of the inputs' Gram matrix.

    Returns:
        The new weights, `(hidden, kept)`.
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
    """Returns what each module put out for the real tokens, `(tokens, hidden)` in half the memory."""
    found: list[list[torch.Tensor]] = [[] for _ in modules]
    for batch in tqdm(data, desc="targets", unit="batch", disable=None):
        with ExitStack() as hooks:
            for module, rows in zip(modules, found, strict=True):
                hook = module.register_forward_hook(
                    lambda _, __, output, rows=rows, batch=batch: rows.append(output[_real(output, batch)].bfloat16())
                )
                hooks.callback(hook.remove)
            model(**inputs(model, batch))
    return [torch.cat(rows) for rows in found]


@torch.inference_mode()
def _input(model: torch.nn.Module, module: torch.nn.Module, calls: int, batch: Any) -> torch.Tensor:
    """Returns what a module is fed for the real tokens in all its calls, `(tokens, kept)`."""
    found: list[torch.Tensor] = []

    def hook(_: torch.nn.Module, fed: tuple[torch.Tensor, ...]) -> None:
        found.append(fed[0][_real(fed[0], batch)])
        if len(found) == calls:
            raise _Reached

    handle = module.register_forward_pre_hook(hook)
    try:
        model(**inputs(model, batch))
    except _Reached:
        pass
    finally:
        handle.remove()
    return torch.cat(found)


def _real(states: torch.Tensor, batch: Any) -> torch.Tensor:
    """Returns which states, `(batch, tokens, size)`, are of no padding; a decoder has those of the targets."""
    mask: torch.Tensor = batch["attention_mask"].bool()
    return mask if mask.shape == states.shape[:2] else batch["labels"] != IGNORED
