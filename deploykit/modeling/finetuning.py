"""Fits a torch module to labelled rows with transformers' Trainer.

Shared by the trainers and by distillation after pruning. Rows are tokenized and padded as in the service, the best
epoch is kept, and a run that was killed continues from its last checkpoint.
"""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState, TrainingArguments, set_seed

from deploykit import hardware
from deploykit.artifact import WEIGHTS
from deploykit.modeling.callbacks import Deadline, Progress
from deploykit.modeling.losses import Loss, checked
from deploykit.modeling.optimizer import adamw
from deploykit.modeling.options import FitOptions
from deploykit.modeling.problem import Problem, Row, collate, inputs, quality
from deploykit.modeling.surgery import TRANSFORMERS_4
from deploykit.process_state import draws, environment, quiet, threads

STATE = "trainer_state.json"  # the Trainer writes it last, so a checkpoint that has it is complete
BY_LENGTH: dict[str, Any] = (
    {"group_by_length": True} if TRANSFORMERS_4 else {"train_sampling_strategy": "group_by_length"}
)
CHOSEN_BY = "metric_and_loss"
LOSS_WEIGHT = 1e-4  # of a loss, which is scaled to 0 to 1, against the metric
LOGGED_PER_EPOCH = 20  # points of the learning curve
UNSHOWN = ("runtime", "samples_per_second", "steps_per_second", CHOSEN_BY)  # in the learning curve
log = logging.getLogger(__name__)


class LossTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that keeps neither logits nor targets while it evaluates: `compute_metrics` predicts by itself.

    `metric` is the task's first.
    """

    metric: str

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Returns the loss of a batch, and numbers in place of its logits and targets, which may not be missing."""
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        return loss, torch.zeros(1), torch.zeros(1)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """Adds the number that chooses the best epoch: the metric, or, where it hardly differs, the loss.

        A metric of ranks or labels is often as good after the first epoch as after the last, while numbers and
        probabilities still improve.
        """
        output = super().evaluation_loop(*arguments, **options)
        metric, loss = (output.metrics[f"eval_{name}"] for name in (self.metric, "loss"))
        output.metrics[f"eval_{CHOSEN_BY}"] = metric - LOSS_WEIGHT * loss / (1 + loss)
        return output


def fit(model: torch.nn.Module, problem: Problem, options: FitOptions, loss: Loss, work: Path) -> list[dict[str, Any]]:
    """Fits a module, whose outputs have `logits`, in place and leaves it at its best epoch.

    The newest complete checkpoint in `work` is continued.

    Returns:
        The learning curve: an entry per logged step (`step`, `epoch`, `loss`) and per epoch (`epoch` and the metrics).

    Raises:
        ModelError: the loss or logits are NaN or infinite.
    """
    with draws(), environment(), quiet("transformers"), threads(hardware.cpu_limit()):
        return _fit(model, problem, options, loss, work)


def _fit(model: torch.nn.Module, problem: Problem, options: FitOptions, loss: Loss, work: Path) -> list[dict[str, Any]]:
    set_seed(problem.seed)
    newest = newest_checkpoint(work)
    optimizer = adamw(model, options.learning_rate, options.weight_decay, options.layer_decay)
    deadline = Deadline(options.minutes, newest) if options.minutes else None
    steps = math.ceil(_steps_per_epoch(problem, options) * options.epochs)
    rate = f"with the learning rate {options.learning_rate:g}"
    early_stopping = [EarlyStoppingCallback(options.patience, LOSS_WEIGHT)] if options.patience else []

    def step_loss(outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        """Divides by the batches of a step, as the Trainer does if it cannot count the targets, but not for this."""
        value = loss(outputs, labels, num_items_in_batch)
        return value / options.accumulate if value.requires_grad and num_items_in_batch is None else value

    def batch(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        tensors = collate(problem, [item["row"] for item in items])
        return {**inputs(model, tensors), "labels": tensors["labels"]}

    trainer: LossTrainer = LossTrainer(
        model=model,
        args=_arguments(problem, options, work),
        train_dataset=_dataset(problem.train),
        eval_dataset=_dataset(problem.rows(problem.validation)),
        data_collator=batch,
        compute_loss_func=checked(step_loss, lambda: f"at step {trainer.state.global_step + 1}, {rate}"),
        compute_metrics=lambda _: quality(model, problem, f"after epoch {trainer.state.epoch:g}, {rate}"),
        optimizers=(optimizer, deadline.schedule(optimizer, steps, options.warmup) if deadline else None),
        callbacks=[Progress(), *early_stopping, *([deadline] if deadline else [])],
    )
    trainer.metric = problem.task.METRICS[0]
    trainer.remove_callback(PrinterCallback)
    if newest:
        log.info("continuing from %s", newest)
    late = deadline is not None and deadline.share() >= 1
    if newest and (late or _stopped_early(newest, f"eval_{problem.task.METRICS[0]}", options.patience)):
        trainer.state = TrainerState.load_from_json(str(newest / STATE))
        load_model(model, Path(str(trainer.state.best_model_checkpoint)) / WEIGHTS, strict=False)
    else:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # or it would predict in bfloat16
    model.to("cpu")
    return [_curve_point(entry) for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]


def _stopped_early(checkpoint: Path, metric: str, patience: int | None) -> bool:
    """Says whether early stopping had ended the run before it was killed; the Trainer would continue it."""
    history = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["log_history"]
    values = [entry[metric] for entry in history if metric in entry]
    return patience is not None and len(values) - 1 - int(np.argmax(values)) >= patience


def _arguments(problem: Problem, options: FitOptions, work: Path) -> TrainingArguments:
    steps = _steps_per_epoch(problem, options)
    cuda = torch.cuda.is_available()
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
        bf16=uses_bf16(options),
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=CHOSEN_BY,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # or early stopping would count its patience from zero
        logging_strategy="steps",
        logging_nan_inf_filter=False,  # it would replace a NaN loss, which must stop the run
        logging_steps=max(1, steps // LOGGED_PER_EPOCH),
        logging_first_step=True,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        seed=problem.seed,
        data_seed=problem.seed,
    )


def uses_bf16(options: FitOptions) -> bool:
    """Says whether a module is fitted in bfloat16 here."""
    has_bf16 = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else hardware.has_bf16()
    return options.bf16 == "on" or (options.bf16 == "auto" and has_bf16)


def _steps_per_epoch(problem: Problem, options: FitOptions) -> int:
    return -(-len(problem.train) // (options.batch_size * options.accumulate))


def _dataset(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns rows as the Trainer expects them; it groups them by the length of `input_ids`."""
    return [{"input_ids": row.features.encoding.ids, "row": row} for row in rows]


def newest_checkpoint(work: Path) -> Path | None:
    """Returns the newest complete checkpoint, and removes incomplete ones that a killed run left."""
    complete = []
    for folder in work.glob("checkpoint-*"):
        try:
            json.loads((folder / STATE).read_text(encoding="utf-8"))
            complete.append(folder)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(folder)
    return max(complete, key=lambda folder: int(folder.name.partition("-")[2]), default=None)


def _curve_point(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns an entry of the Trainer's log without its prefix and without what is not shown."""
    point = {name.removeprefix("eval_"): value for name, value in entry.items()}
    split = "validation" if "eval_loss" in entry else "train"
    return {**{name: value for name, value in point.items() if name not in UNSHOWN}, "split": split}
