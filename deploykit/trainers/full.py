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

NEEDS_FINE_TUNED = False  # the base model needs no head: a new one is made


class Options(FitOptions):
    """Fine-tunes every weight."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over all labels."""
    pooling: Literal["auto", "mean", "model"] = "auto"
    """What a new head reads in a task on whole texts. `mean`: the mean of the hidden states of all tokens; the
    checkpoint then has a model class of deploykit. `model`: what transformers' class of the model reads, for BERT the
    first token. `auto`: `mean` if the base model is an encoder of a known type without such a head, otherwise `model`.
    Other tasks do not use it."""
    head_first: bool = True
    """Fits a new head that reads mean hidden states before all weights are trained, with the encoder as it is (Kumar et
    al., 2022)."""
    class_weights: Literal["balanced"] | None = None
    """`balanced`: weights inversely proportional to the frequency of each label; null: equal weights."""


def train(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Trained:
    """Fits all weights to the training rows, and returns the model of the best epoch."""
    from deploykit.modeling.finetuning import fit, newest_checkpoint
    from deploykit.modeling.losses import task_loss
    from deploykit.modeling.probing import fit_text_heads
    from deploykit.modeling.problem import balanced_weights

    weights = balanced_weights(problem) if options.class_weights else None
    loss = task_loss(problem.task, weights, options.label_smoothing)
    if options.head_first and not newest_checkpoint(work):
        fit_text_heads(model, problem, options, weights)
    return Trained(model, fit(model, problem, options, loss, work))
