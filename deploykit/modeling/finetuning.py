"""One way to fit a torch module to labelled rows, on transformers' Trainer.

Shared by the trainers and by the recovery after pruning, which is why it is a room of its own. It batches
through the same tokenizer as the service, keeps the best epoch, and goes on from the last checkpoint of a
run that was killed. It knows nothing of artifacts.
"""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_model
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState, TrainingArguments, set_seed

from deploykit import hardware
from deploykit.artifact import WEIGHTS
from deploykit.methods import Options
from deploykit.modeling.callbacks import Deadline, Progress
from deploykit.modeling.finite import Loss, checked
from deploykit.modeling.judging import quality
from deploykit.modeling.optimizer import adamw
from deploykit.modeling.problem import Problem, Row, collate, inputs
from deploykit.modeling.surgery import TRANSFORMERS_4
from deploykit.process_state import draws, environment, quiet, threads

STATE = "trainer_state.json"  # what the Trainer writes last
BY_LENGTH: dict[str, Any] = (
    {"group_by_length": True} if TRANSFORMERS_4 else {"train_sampling_strategy": "group_by_length"}
)
LOGGED_STEPS = 20  # points of the learning curve in an epoch
log = logging.getLogger(__name__)


class FitOptions(Options):
    """How a module is fitted: AdamW with linear warm-up and linear decay of the learning rate."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows; may be a part of one."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Highest learning rate, reached after the warm-up."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of one batch."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added up to one step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW; biases and normalizations have none."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each layer to the one below it (Howard and Ruder, 2018, section 3.2)."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm that gradients are clipped to."""
    bf16: Literal["auto", "on", "off"] = "auto"
    """Autocast to bfloat16; `auto` where the hardware multiplies it."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation metric after which training ends; null: all epochs."""
    minutes: float | None = Field(default=None, gt=0)
    """Wall-clock minutes after which training ends; the learning-rate schedule is fitted to them."""


def fit(model: torch.nn.Module, problem: Problem, options: FitOptions, loss: Loss, work: Path) -> list[dict[str, Any]]:
    """Fits a module in place and leaves it at its best epoch.

    Args:
        model: takes the arrays of a batch and `labels`; returns an output with `logits`.
        problem: rows to learn from and rows to judge by.
        options: see `FitOptions`.
        loss: `loss(outputs, labels, num_items_in_batch) -> scalar`.
        work: directory for checkpoints; the newest complete one there is continued.

    Returns:
        The history: one entry a logged step (`step`, `epoch`, `loss`) or epoch (`epoch` and the metrics).

    Raises:
        ModelError: a loss or the logits of an epoch are no numbers.
    """
    with draws(), environment(), quiet("transformers"), threads(hardware.cpu_limit()):
        return _fit(model, problem, options, loss, work)


def _fit(model: torch.nn.Module, problem: Problem, options: FitOptions, loss: Loss, work: Path) -> list[dict[str, Any]]:
    set_seed(problem.seed)
    newest = newest_checkpoint(work)
    optimizer = adamw(model, options.learning_rate, options.weight_decay, options.layer_decay)
    deadline = Deadline(options.minutes, newest) if options.minutes else None
    steps = math.ceil(_epoch(problem, options) * options.epochs)
    rate = f"with the learning rate {options.learning_rate:g}"
    stops = [EarlyStoppingCallback(options.patience)] if options.patience else []
    trainer: Trainer = Trainer(
        model=model,
        args=_arguments(problem, options, work),
        train_dataset=_Rows(problem.train),
        eval_dataset=_Rows(problem.validation),
        data_collator=lambda found: _batch(model, collate(problem.tokenizer, [item["row"] for item in found])),
        compute_loss_func=checked(loss, lambda: f"at step {trainer.state.global_step + 1}, {rate}"),
        compute_metrics=lambda _: quality(model, problem, f"after epoch {trainer.state.epoch:g}, {rate}"),
        preprocess_logits_for_metrics=lambda _, labels: labels.new_zeros(len(labels)),  # all logits fill the memory
        optimizers=(optimizer, deadline.schedule(optimizer, steps, options.warmup) if deadline else None),
        callbacks=[Progress(), *stops, *([deadline] if deadline else [])],
    )
    trainer.remove_callback(PrinterCallback)
    if newest:
        log.info("continuing from %s", newest)
    late = deadline is not None and deadline.share() >= 1
    if newest and (late or _is_over(newest, f"eval_{problem.task.METRICS[0]}", options.patience)):
        trainer.state = TrainerState.load_from_json(str(newest / STATE))
        load_model(model, Path(str(trainer.state.best_model_checkpoint)) / WEIGHTS, strict=False)
    else:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # or it would predict in bfloat16
    model.to("cpu")
    return [_entry(found) for found in trainer.state.log_history if "loss" in found or "eval_loss" in found]


def _is_over(checkpoint: Path, metric: str, patience: int | None) -> bool:
    """Says whether early stopping had ended the run when it was killed; the Trainer would go on."""
    history = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["log_history"]
    values = [entry[metric] for entry in history if metric in entry]
    return patience is not None and len(values) - 1 - int(np.argmax(values)) >= patience


def _arguments(problem: Problem, options: FitOptions, work: Path) -> TrainingArguments:
    steps = _epoch(problem, options)
    cuda = torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported() if cuda else hardware.has_bf16()
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,  # of the head; see `optimizer`
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        warmup_steps=int(options.warmup * steps * options.epochs),
        max_grad_norm=options.max_grad_norm,
        lr_scheduler_type="linear",
        **BY_LENGTH,
        bf16=options.bf16 == "on" or (options.bf16 == "auto" and fast),
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=problem.task.METRICS[0],
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # or the patience of early stopping would begin anew
        logging_strategy="steps",
        logging_nan_inf_filter=False,  # it hides a loss that is no number, which stops the run here
        logging_steps=max(1, steps // LOGGED_STEPS),
        logging_first_step=True,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        seed=problem.seed,
        data_seed=problem.seed,
    )


def _epoch(problem: Problem, options: FitOptions) -> int:
    """Returns the steps of an epoch."""
    return -(-len(problem.train) // (options.batch_size * options.accumulate))


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as the Trainer wants them; `input_ids` is what it groups by length."""

    def __init__(self, found: Sequence[Row]) -> None:
        self._rows = found

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._rows[index].encoding.ids, "row": self._rows[index]}


def _batch(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**inputs(model, batch), "labels": batch["labels"]}


def newest_checkpoint(work: Path) -> Path | None:
    """Finds the newest complete checkpoint and removes what a kill left half written.

    The Trainer writes its state last, so a checkpoint without a readable one is incomplete.
    """
    complete = []
    for folder in work.glob("checkpoint-*"):
        try:
            json.loads((folder / STATE).read_text(encoding="utf-8"))
            complete.append(folder)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(folder)
    return max(complete, key=lambda folder: int(folder.name.partition("-")[2]), default=None)


def _entry(found: dict[str, Any]) -> dict[str, Any]:
    """Strips the Trainer's prefix and what is a matter of timing."""
    names = {name: name.removeprefix("eval_") for name in found}
    timed = ("runtime", "samples_per_second", "steps_per_second")
    entry = {short: found[name] for name, short in names.items() if short not in timed}
    return {**entry, "split": "validation" if "eval_loss" in found else "train"}
