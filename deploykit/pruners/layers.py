"""Removes whole layers, those whose absence does the least damage.

Which layers a task needs is not known from their position, so each is tried: it is left out, and the damage is
the divergence of the logits from the whole model's on calibration rows. The least harmful layer goes, and what
is left is tried again, because layers make up for each other. Divergence needs no labels, and moves before any
prediction flips, where accuracy on a few hundred rows stands still; it is also what the recovery makes smaller.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from deploykit.errors import ModelError
from deploykit.methods import Options as Base
from deploykit.modeling import surgery
from deploykit.modeling.architectures import architecture_of
from deploykit.modeling.distillation import DistillOptions, distill, divergence
from deploykit.modeling.finetuning import Problem, Teacher, inputs
from deploykit.modeling.finite import require_logits
from deploykit.modeling.importance import padded
from deploykit.modeling.surgery import depths, without
from deploykit.pruners import Pruned
from deploykit.pruners._judging import first_metric
from deploykit.pruners.width import sample
from deploykit.tasks import IGNORED

MAX_DROP = 0.01
log = logging.getLogger(__name__)


class Options(Base):
    """How many layers go, and how the model recovers.

    `keep` is the number of layers that stay, of encoder and decoder together; or layers go as long as the first
    metric on the validation split stays within `max_drop` of the model that came in, before any recovery
    (0.01 where neither is given). `calibration_rows` of the training split measure the damage; `distill` is how
    the unpruned model teaches what is left (null: not at all).
    """

    keep: int | None = Field(default=None, ge=1)
    max_drop: float | None = Field(default=None, ge=0, le=1)
    calibration_rows: int = Field(default=256, ge=1)
    distill: DistillOptions | None = None

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if self.keep is not None and self.max_drop is not None:
            raise ValueError("takes either keep or max_drop")
        return self


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a shallower copy of the model, which layers went, and what each would have cost."""
    depth, stacks = sum(depths(model)), len(depths(model))
    if options.keep is not None and options.keep not in range(stacks, depth + 1):
        raise ModelError(f"keep must be from {stacks} to {depth}, the layers that there are, got {options.keep}.")
    rows = sample(problem.train, options.calibration_rows, problem.seed)
    steps = _ablation(model.eval(), list(padded(rows, problem.tokenizer)))
    if options.keep is not None:
        taken = list(islice(steps, depth - options.keep))
    else:
        lowest = first_metric(model, problem) - (MAX_DROP if options.max_drop is None else options.max_drop)
        taken = list(takewhile(lambda step: first_metric(without(model, step["gone"]), problem) >= lowest, steps))
    gone = taken[-1]["gone"] if taken else []
    small, kept = without(model, gone), tuple(layer for layer in range(depth) if layer not in gone)
    curve = []
    if options.distill:
        teacher = problem.teacher or Teacher(model, tuple(range(depth)))
        left = Teacher(teacher.model, tuple(teacher.layers[layer] for layer in kept))
        curve = distill(small, model, replace(problem, teacher=left), options.distill, work)
    sizes = [asdict(size) for size in surgery.shapes(small)]
    return Pruned(small, {"gone": gone, "ablation": taken, "layers": sizes, "curve": curve}, layers=kept)


def _ablation(model: torch.nn.Module, data: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields the layers that are gone after each step, and the damage that each candidate would have done in it."""
    whole, gone = _logits(model, data), list[int]()
    while candidates := list(_candidates(model, gone)):
        damage = {}
        for layer in tqdm(candidates, desc=f"ablation {len(gone) + 1}", unit="layer", disable=None):
            damage[layer] = float(divergence(_logits(without(model, [*gone, layer]), data), whole, temperature=1.0))
        least = min(damage, key=lambda layer: damage[layer])
        gone = [*gone, least]
        log.info("without layer %d: divergence %.4f", least, damage[least])
        yield {"gone": gone, "damage": {str(layer): value for layer, value in damage.items()}}


def _candidates(model: torch.nn.Module, gone: Sequence[int]) -> Iterator[int]:
    """Yields layers that may go: the last of a stack stays, and of a layer's repetitions one is like another."""
    start = 0
    for depth in depths(model):
        left = [layer for layer in range(start, start + depth) if layer not in gone]
        if len(left) > 1:
            yield from left[-1:] if architecture_of(model.config).repeated else left
        start += depth


@torch.inference_mode()
def _logits(model: torch.nn.Module, data: Sequence[Any]) -> torch.Tensor:
    """Returns the logits of all units that have a label, `(units, labels)`."""
    logits = torch.cat([model(**inputs(model, batch)).logits[batch["labels"] != IGNORED] for batch in data])
    require_logits(logits.float().numpy(), np.zeros(len(logits)), "the model, as it is being pruned")
    return logits
