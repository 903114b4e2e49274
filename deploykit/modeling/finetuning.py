"""Fits a torch module to labelled rows with transformers' Trainer.

The trainers and the distillation after pruning use it. Rows are tokenized and padded as in the service, the weights of
the best epoch are kept, and a run that was killed continues from its last checkpoint.
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
from deploykit.modeling.losses import Loss, with_finite_check
from deploykit.modeling.optimizer import adamw
from deploykit.modeling.options import FitOptions
from deploykit.modeling.problem import Problem, Row, collate, model_inputs, validation_metrics
from deploykit.modeling.surgery import TRANSFORMERS_4
from deploykit.process_state import quiet_loggers, restored_environment, restored_random_state, torch_threads

STATE_FILE = "trainer_state.json"  # the Trainer writes it last, so a checkpoint that has it is complete
# The Trainer's argument that puts rows of similar length into a batch; transformers 5 renamed it.
GROUP_BY_LENGTH: dict[str, Any] = (
    {"group_by_length": True} if TRANSFORMERS_4 else {"train_sampling_strategy": "group_by_length"}
)
CHOSEN_BY = "metric_and_loss"  # the value that decides which epoch is best; see `LossTrainer.evaluation_loop`
LOSS_WEIGHT = 1e-4  # of the loss, scaled to between 0 and 1, against the metric
LOGS_PER_EPOCH = 20  # points of the learning curve in each epoch
HIDDEN_KEYS = ("runtime", "samples_per_second", "steps_per_second", CHOSEN_BY)  # left out of the learning curve
log = logging.getLogger(__name__)


class LossTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that keeps neither logits nor targets during evaluation, because `compute_metrics` predicts again.

    `metric` is the name of the task's first metric.
    """

    metric: str

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Returns the loss of a batch, with zeros for logits and targets.

        Without these two, the Trainer would not call `compute_metrics`.
        """
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        return loss, torch.zeros(1), torch.zeros(1)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """Adds the value that decides which epoch is best: the metric, and among equal metrics the loss.

        The order of texts or their labels are often right after the first epoch already, while numbers and
        probabilities still improve.
        """
        output = super().evaluation_loop(*arguments, **options)
        metric, loss = (output.metrics[f"eval_{name}"] for name in (self.metric, "loss"))
        output.metrics[f"eval_{CHOSEN_BY}"] = metric - LOSS_WEIGHT * loss / (1 + loss)
        return output


def fit(model: torch.nn.Module, problem: Problem, options: FitOptions, loss: Loss, work: Path) -> list[dict[str, Any]]:
    """Fits a module in place, and leaves it with the weights of its best epoch.

    Args:
        model: its outputs have `logits`.
        problem: the training rows, and the validation rows that decide which epoch is best.
        options: see `FitOptions`.
        loss: of the outputs and the targets of a batch.
        work: folder for checkpoints; training continues from the newest complete one in it.

    Returns:
        The learning curve: an entry per logged step (`step`, `epoch`, `loss`) and per epoch (`epoch` and the metrics).

    Raises:
        ModelError: the loss or logits are NaN or infinite.
    """
    with (
        restored_random_state(),
        restored_environment(),
        quiet_loggers("transformers"),
        torch_threads(hardware.cpu_limit()),
    ):
        return _fit(model, problem, options, loss, work)


def _fit(model: torch.nn.Module, problem: Problem, options: FitOptions, loss: Loss, work: Path) -> list[dict[str, Any]]:
    """Does the work of `fit`, which restores the settings of the process afterwards."""
    set_seed(problem.seed)
    remove_incomplete_checkpoints(work)
    newest = newest_checkpoint(work)
    optimizer = adamw(model, options.learning_rate, options.weight_decay, options.layer_decay)
    deadline = Deadline(options.minutes, newest) if options.minutes else None
    steps = math.ceil(_steps_per_epoch(problem, options) * options.epochs)
    rate_text = f"with the learning rate {options.learning_rate:g}"  # for error messages
    early_stopping = [EarlyStoppingCallback(options.patience, LOSS_WEIGHT)] if options.patience else []

    def step_loss(outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        """Averages over the batches of a step if the Trainer could not count the targets of the step.

        The Trainer divides its own loss by the number of batches then, but not the loss of `compute_loss_func`.
        """
        value = loss(outputs, labels, num_items_in_batch)
        return value / options.accumulate if value.requires_grad and num_items_in_batch is None else value

    def collate_items(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        tensors = collate(problem, [item["row"] for item in items])
        return {**model_inputs(model, tensors), "labels": tensors["labels"]}

    trainer: LossTrainer = LossTrainer(
        model=model,
        args=_training_arguments(problem, options, work),
        train_dataset=_dataset(problem.train),
        eval_dataset=_dataset(problem.rows(problem.validation)),
        data_collator=collate_items,
        compute_loss_func=with_finite_check(step_loss, lambda: f"at step {trainer.state.global_step + 1}, {rate_text}"),
        compute_metrics=lambda _: validation_metrics(
            model, problem, f"after epoch {trainer.state.epoch:g}, {rate_text}"
        ),
        optimizers=(optimizer, deadline.schedule(optimizer, steps, options.warmup) if deadline else None),
        callbacks=[Progress(problem.task.METRICS[0]), *early_stopping, *([deadline] if deadline else [])],
    )
    trainer.metric = problem.task.METRICS[0]
    trainer.remove_callback(PrinterCallback)
    if newest:
        log.info("continuing from %s", newest)
    is_out_of_time = deadline is not None and deadline.used_share() >= 1
    if newest and (is_out_of_time or _stopped_early(newest, f"eval_{problem.task.METRICS[0]}", options.patience)):
        trainer.state = TrainerState.load_from_json(str(newest / STATE_FILE))
        load_model(model, Path(str(trainer.state.best_model_checkpoint)) / WEIGHTS, strict=False)
    else:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    # Undoes the autocast that accelerate has put around `forward`; the model would still predict in bfloat16.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model.to("cpu")
    return [_curve_point(entry) for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]


def _stopped_early(checkpoint: Path, metric: str, patience: int | None) -> bool:
    """Says whether early stopping had ended training before the run was killed; the Trainer would train on."""
    history = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["log_history"]
    values = [entry[metric] for entry in history if metric in entry]
    epochs_since_best = len(values) - 1 - int(np.argmax(values))
    return patience is not None and epochs_since_best >= patience


def _training_arguments(problem: Problem, options: FitOptions, work: Path) -> TrainingArguments:
    """Translates the options to arguments of the Trainer; it evaluates and saves after each epoch."""
    steps = _steps_per_epoch(problem, options)
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,  # of the head; `optimizer.adamw` gives deeper layers a lower one
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        warmup_steps=int(options.warmup * steps * options.epochs),
        max_grad_norm=options.max_grad_norm,
        lr_scheduler_type="linear",
        **GROUP_BY_LENGTH,
        bf16=uses_bf16(options),
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=CHOSEN_BY,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # or early stopping would count from zero again
        logging_strategy="steps",
        logging_nan_inf_filter=False,  # it would replace a NaN loss, which must stop the run
        logging_steps=max(1, steps // LOGS_PER_EPOCH),
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
    """Says whether a module is fitted in bfloat16 on this machine."""
    has_bf16 = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else hardware.has_bf16()
    return options.bf16 == "on" or (options.bf16 == "auto" and has_bf16)


def _steps_per_epoch(problem: Problem, options: FitOptions) -> int:
    """Returns the number of optimizer steps in an epoch, the last of which may have fewer rows."""
    return math.ceil(len(problem.train) / (options.batch_size * options.accumulate))


def _dataset(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns items for the Trainer, which groups them by the length of `input_ids`; the collator reads `row`."""
    return [{"input_ids": row.features.encoding.ids, "row": row} for row in rows]


def newest_checkpoint(work: Path) -> Path | None:
    """Returns the folder of the newest complete checkpoint in `work`; None if there is none."""
    complete = [folder for folder in work.glob("checkpoint-*") if _is_complete(folder)]
    return max(complete, key=lambda folder: int(folder.name.partition("-")[2]), default=None)


def remove_incomplete_checkpoints(work: Path) -> None:
    """Removes checkpoints that a killed run left unfinished; the Trainer would keep them in place of complete ones."""
    for folder in work.glob("checkpoint-*"):
        if not _is_complete(folder):
            shutil.rmtree(folder)


def _is_complete(checkpoint: Path) -> bool:
    """Says whether a checkpoint has a readable `STATE_FILE`, which is written last."""
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True


def _curve_point(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns an entry of the Trainer's log without timings, and with its `split` in place of the prefix `eval_`."""
    point = {name.removeprefix("eval_"): value for name, value in entry.items()}
    split = "validation" if "eval_loss" in entry else "train"
    return {**{name: value for name, value in point.items() if name not in HIDDEN_KEYS}, "split": split}
