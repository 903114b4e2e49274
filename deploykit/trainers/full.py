"""Fine-tunes every weight."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from deploykit.modeling.finetuning import FitOptions, fit
from deploykit.modeling.losses import cross_entropy
from deploykit.modeling.problem import Problem
from deploykit.tasks import IGNORED

FINE_TUNED = False


class Options(FitOptions):
    """Fine-tunes every weight."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over all labels."""
    class_weights: Literal["balanced"] | None = None
    """`balanced`: weights inversely proportional to the frequency of each label; null: equal weights."""


def train(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> list[dict[str, Any]]:
    """Fits the model to the training rows and leaves it at its best epoch."""
    weights = balanced_weights(problem) if options.class_weights else None
    return fit(model, problem, options, cross_entropy(weights, options.label_smoothing), work)


def balanced_weights(problem: Problem) -> torch.Tensor:
    """Returns `rows / (labels * count)` for each label, shape `(labels,)` (King and Zeng, 2001)."""
    targets = np.concatenate([row.target.reshape(-1) for row in problem.train])
    counts = np.bincount(targets[targets != IGNORED], minlength=len(problem.labels))
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)
