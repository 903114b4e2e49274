"""Callbacks of transformers' Trainer: a time limit, and a progress bar."""

import logging
import time
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import TrainerCallback

USED_TIME_FILE = "seconds.txt"  # the seconds used so far, beside the Trainer's own files in a checkpoint
log = logging.getLogger(__name__)


class Deadline(TrainerCallback):  # type: ignore[misc]
    """Ends training when its minutes are used up, with a learning rate that has decayed to zero by then.

    Progress is the share of the steps or of the time, whichever is larger. Each checkpoint stores the time used, so
    that a resumed run has only the remaining time.

    Args:
        minutes: for the whole training.
        checkpoint: the folder of the checkpoint that training continues from; None: it begins.
    """

    def __init__(self, minutes: float, checkpoint: Path | None) -> None:
        self._limit_s = 60 * minutes
        self._used_before_s = _read_number(checkpoint / USED_TIME_FILE) if checkpoint else 0.0
        self._started_at: float | None = None

    def used_share(self) -> float:
        """Returns the share of the time that is used up; 1 or more when time is over."""
        return self._used_s() / self._limit_s

    def _used_s(self) -> float:
        """Returns the seconds that this run and the ones before it have used."""
        return self._used_before_s + (0.0 if self._started_at is None else time.monotonic() - self._started_at)

    def schedule(self, optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
        """Returns a schedule of linear warm-up and linear decay over the progress.

        Args:
            optimizer: its learning rates are scaled.
            steps: the steps that training would take without a time limit.
            warmup: share of the steps in which the rate rises.
        """
        warmup_share = int(warmup * steps) / steps  # in whole steps, as transformers' own schedule

        def scale(step: int) -> float:
            """Returns the factor on the learning rates in a step."""
            progress = max(step / steps, self.used_share())
            if progress < warmup_share:
                return progress / warmup_share
            return max(0.0, (1 - progress) / (1 - warmup_share))

        return LambdaLR(optimizer, scale)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._started_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops training when the time is used up; the Trainer then evaluates and saves once more."""
        if self.used_share() >= 1:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stores the time used."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / USED_TIME_FILE).write_text(str(self._used_s()), encoding="utf-8")


def _read_number(file: Path) -> float:
    """Reads a number; returns 0 if the file is missing or incomplete, as a killed run may leave it."""
    try:
        return float(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


class Progress(TrainerCallback):  # type: ignore[misc]
    """A progress bar over the steps; it is not shown if the output is no terminal.

    Args:
        metric: name of the metric to show after each epoch.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar at the current step: 0, or that of the checkpoint in a resumed run."""
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fit", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advances the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Logs the metric, and shows it in the bar."""
        value = metrics[f"eval_{self._metric}"]
        log.info("epoch %.0f: validation %s %.4f", state.epoch, self._metric, value)
        self._bar.set_postfix({self._metric: f"{value:.4f}"})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        self._bar.close()
