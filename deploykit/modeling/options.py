"""Options of training, in a module without torch, so that a recipe is read quickly."""

from typing import Literal

from pydantic import Field

from deploykit.methods import Options


class FitOptions(Options):
    """How a module is fitted: AdamW with linear warm-up and linear decay of the learning rate."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows; may be a fraction."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Highest learning rate, reached after the warm-up."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per batch."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added up to one step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW; biases and normalizations have none."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each layer to the one below it (Howard and Ruder, 2018, section 3.2)."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which gradients are clipped."""
    bf16: Literal["auto", "on", "off"] = "auto"
    """Autocast to bfloat16; `auto`: if the hardware has instructions for it."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation metric after which training ends; null: all epochs."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes after which training ends; the learning-rate schedule is adapted to them."""


class DistillOptions(FitOptions):
    """How the unpruned model trains the pruned one; labels of the validation split decide which epoch is best."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows; may be a fraction."""
    temperature: float = Field(default=2.0, gt=0)
    """Temperature of both models' logits."""
    soft: float = Field(default=0.9, ge=0, le=1)
    """Weight of the teacher's logits against the labels; at 1 the training labels are not used."""
    hidden: float = Field(default=1.0, ge=0)
    """Weight of the difference between the hidden states."""
