"""Fine-tunes every weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from deploykit.modeling.options import FitOptions
from deploykit.trainers import Trained

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from deploykit.modeling.problem import Problem

FINE_TUNED = False


class Options(FitOptions):
    """Fine-tunes every weight."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over all labels."""
    class_weights: Literal["balanced"] | None = None
    """`balanced`: weights inversely proportional to the frequency of each label; null: equal weights."""


def train(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Trained:
    """Fits the model to the training rows and leaves it at its best epoch."""
    from deploykit.modeling.finetuning import fit
    from deploykit.modeling.losses import of_task
    from deploykit.modeling.problem import balanced_weights

    weights = balanced_weights(problem) if options.class_weights else None
    loss = of_task(problem.task, weights, options.label_smoothing)
    return Trained(model, fit(model, problem, options, loss, work))
