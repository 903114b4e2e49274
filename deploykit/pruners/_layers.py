"""Tries and removes layers."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deploykit.errors import ModelError
from deploykit.modeling import surgery
from deploykit.modeling.architectures import architecture_of
from deploykit.modeling.distillation import distill, divergence
from deploykit.modeling.losses import require_logits
from deploykit.modeling.problem import Problem, Teacher, first_metric, inputs, padded, sample
from deploykit.modeling.surgery import depths, without
from deploykit.pruners import Pruned
from deploykit.pruners.layers import Options
from deploykit.tasks import IGNORED

MAX_DROP = 0.01  # default loss of the first metric: one point of accuracy
log = logging.getLogger(__name__)


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a shallower copy of the model, the removed layers, and the damage of each removal that was tried."""
    depth, stacks = sum(depths(model)), len(depths(model))
    if options.keep is not None and options.keep not in range(stacks, depth + 1):
        raise ModelError(f"keep must be from {stacks} to {depth}, the number of layers, got {options.keep}.")
    rows = sample(problem.train, options.calibration_rows, problem.seed)
    steps = _ablation(model.eval(), list(padded(rows, problem.tokenizer)))
    if options.keep is not None:
        ablation = list(islice(steps, depth - options.keep))
    else:
        lowest = first_metric(model, problem) - (MAX_DROP if options.max_drop is None else options.max_drop)
        ablation = list(takewhile(lambda step: first_metric(without(model, step["gone"]), problem) >= lowest, steps))
    removed = ablation[-1]["gone"] if ablation else []
    pruned, kept = without(model, removed), tuple(layer for layer in range(depth) if layer not in removed)
    curve = []
    if options.distill:
        teacher = problem.teacher or Teacher(model, tuple(range(depth)))
        matched = Teacher(teacher.model, tuple(teacher.layers[layer] for layer in kept))
        curve = distill(pruned, model, replace(problem, teacher=matched), options.distill, work)
    sizes = [asdict(size) for size in surgery.shapes(pruned)]
    return Pruned(pruned, {"gone": removed, "ablation": ablation, "layers": sizes, "curve": curve}, layers=kept)


def _ablation(model: torch.nn.Module, data: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields, step by step, all layers removed so far (`gone`) and the `damage` of each candidate of that step."""
    whole, removed = _logits(model, data), list[int]()
    while candidates := list(_candidates(model, removed)):
        damage = {}
        for layer in tqdm(candidates, desc=f"ablation {len(removed) + 1}", unit="layer", disable=None):
            damage[layer] = float(divergence(_logits(without(model, [*removed, layer]), data), whole, temperature=1.0))
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
            yield from remaining[-1:] if architecture_of(model.config).repeated else remaining
        start += depth


@torch.inference_mode()
def _logits(model: torch.nn.Module, data: Sequence[Any]) -> torch.Tensor:
    """Returns the logits of all units that have a label, `(units, labels)`."""
    logits = torch.cat([model(**inputs(model, batch)).logits[batch["labels"] != IGNORED] for batch in data])
    require_logits(logits.float().numpy(), np.zeros(len(logits)), "the model during pruning")
    return logits
