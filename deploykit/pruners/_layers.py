"""Removes the layers of a model whose removal does the least damage; see `layers`."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from deploykit.errors import ModelError
from deploykit.modeling import surgery
from deploykit.modeling.architectures import architecture_of
from deploykit.modeling.distillation import distill
from deploykit.modeling.losses import DIVERGENCE_ADVICE, divergence, has_target, targets_by_name
from deploykit.modeling.problem import Problem, Teacher, first_metric, model_inputs, padded_batches, sample
from deploykit.modeling.surgery import depths, without_layers
from deploykit.pruners import Pruned
from deploykit.pruners.layers import Options
from deploykit.tasks import Task

DEFAULT_MAX_DROP = 0.01  # of the first metric, if the recipe sets no bound: one point of accuracy
log = logging.getLogger(__name__)


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a shallower copy of the model, the removed layers, and the damage of each removal that was tried."""
    depth, stack_count = sum(depths(model)), len(depths(model))
    if options.keep is not None and options.keep not in range(stack_count, depth + 1):
        raise ModelError(f"keep must be from {stack_count} to {depth}, the number of layers, got {options.keep}.")
    rows = sample(problem.train, options.calibration_rows, problem.seed)
    steps = _ablation(model.eval(), problem.task, list(padded_batches(problem, rows)))
    if options.keep is not None:
        ablation = list(islice(steps, depth - options.keep))
    else:
        max_drop = DEFAULT_MAX_DROP if options.max_drop is None else options.max_drop
        min_metric = first_metric(model, problem) - max_drop

        def is_good_enough(step: dict[str, Any]) -> bool:
            return first_metric(without_layers(model, step["gone"]), problem) >= min_metric

        ablation = list(takewhile(is_good_enough, steps))
    removed = ablation[-1]["gone"] if ablation else []
    pruned, kept = without_layers(model, removed), tuple(layer for layer in range(depth) if layer not in removed)
    curve = []
    if options.distill:
        teacher = problem.teacher or Teacher(model, tuple(range(depth)))
        teacher = Teacher(teacher.model, tuple(teacher.layers[layer] for layer in kept))
        curve = distill(pruned, model, replace(problem, teacher=teacher), options.distill, work)
    sizes = [asdict(size) for size in surgery.shapes(pruned)]
    return Pruned(pruned, {"gone": removed, "ablation": ablation, "layers": sizes, "curve": curve}, layers=kept)


def _ablation(model: torch.nn.Module, task: Task, batches: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Removes one layer after another, each time the one whose removal does the least damage.

    Yields for each step `gone`, the indices of all layers removed so far, and `damage`, the divergence from the
    unpruned model after the removal of each layer that was tried, by its index.
    """
    unpruned_logits, removed = target_logits(model, task, batches), list[int]()
    while candidates := list(_candidates(model, removed)):
        damage = {}
        for layer in tqdm(candidates, desc=f"ablation {len(removed) + 1}", unit="layer", disable=None):
            logits = target_logits(without_layers(model, [*removed, layer]), task, batches)
            divergences = (
                divergence(task.TARGETS[name].loss, logits[name], expected)
                for name, expected in unpruned_logits.items()
            )
            damage[layer] = float(sum(divergences))
        chosen = min(damage, key=lambda layer: damage[layer])
        removed = [*removed, chosen]
        log.info("without layer %d: divergence %.4f", chosen, damage[chosen])
        yield {"gone": removed, "damage": {str(layer): value for layer, value in damage.items()}}


def _candidates(model: torch.nn.Module, removed: Sequence[int]) -> Iterator[int]:
    """Yields the layers that may be removed next; each stack keeps at least one layer.

    If the layers of a stack share their weights, as in ALBERT, it yields only the last one, because removing any other
    gives the same model.
    """
    first_index = 0  # of the stack, over all stacks
    for depth in depths(model):
        remaining = [layer for layer in range(first_index, first_index + depth) if layer not in removed]
        if len(remaining) > 1:
            yield from remaining[-1:] if architecture_of(model.config).shares_layer else remaining
        first_index += depth


@torch.inference_mode()
def target_logits(model: torch.nn.Module, task: Task, batches: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Returns the logits of the units that have a target, `(units, labels)`, by the name of the target.

    Raises:
        ModelError: they are NaN or infinite.
    """
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in task.TARGETS}
    for batch in batches:
        outputs, targets = model(**model_inputs(model, batch)), targets_by_name(task, batch["labels"])
        for name, target in task.TARGETS.items():
            logits = outputs[target.output]
            collected[name].append(logits[has_target(target, targets[name], logits)].float())
    joined = {name: torch.cat(_pad_to_same_width(tensors)) for name, tensors in collected.items()}
    if not all(logits.isfinite().all() for logits in joined.values()):
        raise ModelError(
            f"the model during pruning: logits of the training rows are NaN or infinite. {DIVERGENCE_ADVICE}"
        )
    return joined


def _pad_to_same_width(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Pads the last axis of the logits of several batches.

    Its size differs between batches if it holds a logit for each token. The softmax of the padding is 0.
    """
    width = max(tensor.shape[-1] for tensor in tensors)
    return [torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]), value=-1e4) for tensor in tensors]
