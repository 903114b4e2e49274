"""Tries and removes layers."""

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

MAX_DROP = 0.01  # default loss of the first metric: one point of accuracy
log = logging.getLogger(__name__)


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a shallower copy of the model, the removed layers, and the damage of each removal that was tried."""
    depth, stacks = sum(depths(model)), len(depths(model))
    if options.keep is not None and options.keep not in range(stacks, depth + 1):
        raise ModelError(f"keep must be from {stacks} to {depth}, the number of layers, got {options.keep}.")
    rows = sample(problem.train, options.calibration_rows, problem.seed)
    steps = _ablation(model.eval(), problem.task, list(padded_batches(problem, rows)))
    if options.keep is not None:
        ablation = list(islice(steps, depth - options.keep))
    else:
        lowest = first_metric(model, problem) - (MAX_DROP if options.max_drop is None else options.max_drop)
        ablation = list(
            takewhile(lambda step: first_metric(without_layers(model, step["gone"]), problem) >= lowest, steps)
        )
    removed = ablation[-1]["gone"] if ablation else []
    pruned, kept = without_layers(model, removed), tuple(layer for layer in range(depth) if layer not in removed)
    curve = []
    if options.distill:
        teacher = problem.teacher or Teacher(model, tuple(range(depth)))
        matched = Teacher(teacher.model, tuple(teacher.layers[layer] for layer in kept))
        curve = distill(pruned, model, replace(problem, teacher=matched), options.distill, work)
    sizes = [asdict(size) for size in surgery.shapes(pruned)]
    return Pruned(pruned, {"gone": removed, "ablation": ablation, "layers": sizes, "curve": curve}, layers=kept)


def _ablation(model: torch.nn.Module, task: Task, data: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields, step by step, all layers removed so far (`gone`) and the `damage` of each candidate of that step."""
    whole, removed = logits(model, task, data), list[int]()
    while candidates := list(_candidates(model, removed)):
        damage = {}
        for layer in tqdm(candidates, desc=f"ablation {len(removed) + 1}", unit="layer", disable=None):
            changed = logits(without_layers(model, [*removed, layer]), task, data)
            losses = (divergence(task.TARGETS[name].loss, changed[name], rows) for name, rows in whole.items())
            damage[layer] = float(sum(losses))
        least = min(damage, key=lambda layer: damage[layer])
        removed = [*removed, least]
        log.info("without layer %d: divergence %.4f", least, damage[least])
        yield {"gone": removed, "damage": {str(layer): value for layer, value in damage.items()}}


def _candidates(model: torch.nn.Module, removed: Sequence[int]) -> Iterator[int]:
    """Yields the layers that may be removed next: all but one per stack; of equal repetitions (ALBERT) the last."""
    start = 0
    for depth in depths(model):
        remaining = [layer for layer in range(start, start + depth) if layer not in removed]
        if len(remaining) > 1:
            yield from remaining[-1:] if architecture_of(model.config).shares_layer else remaining
        start += depth


@torch.inference_mode()
def logits(model: torch.nn.Module, task: Task, data: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Returns the logits that have a target, `(units, labels)`, by the name of the target.

    Raises:
        ModelError: they are NaN or infinite.
    """
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in task.TARGETS}
    for batch in data:
        outputs, named = model(**model_inputs(model, batch)), targets_by_name(task, batch["labels"])
        for name, target in task.TARGETS.items():
            rows = outputs[target.output]
            parts[name].append(rows[has_target(target, named[name], rows)].float())
    joined = {name: torch.cat(_same_width(rows)) for name, rows in parts.items()}
    if not all(rows.isfinite().all() for rows in joined.values()):
        raise ModelError(
            f"the model during pruning: logits of the training rows are NaN or infinite. {DIVERGENCE_ADVICE}"
        )
    return joined


def _same_width(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Pads logits over tokens, which have the width of their batch, with a logit of no weight."""
    width = max(part.shape[-1] for part in rows)
    return [torch.nn.functional.pad(part, (0, width - part.shape[-1]), value=-1e4) for part in rows]
