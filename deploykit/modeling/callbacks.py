"""Callbacks of transformers' Trainer: a time limit, and a progress bar."""

import logging
import time
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import TrainerCallback

SECONDS = "seconds.txt"  # the time used so far, beside the Trainer's own files in a checkpoint
log = logging.getLogger(__name__)


class Deadline(TrainerCallback):  # type: ignore[misc]
    """Ends training when its minutes are used up, with a learning rate that has decayed to zero by then.

    Progress is the share of the steps or of the time, whichever is larger. Each checkpoint stores the time used, so a
    resumed run has only the remaining time.
    """

    def __init__(self, minutes: float, checkpoint: Path | None) -> None:
        self._limit_s = 60 * minutes
        self._used_s = _read_number(checkpoint / SECONDS) if checkpoint else 0.0
        self._started: float | None = None

    def share(self) -> float:
        """Returns the share of the time that is used up, 1 or more at the end."""
        return self._seconds() / self._limit_s

    def _seconds(self) -> float:
        return self._used_s + (0.0 if self._started is None else time.monotonic() - self._started)

    def schedule(self, optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
        """Returns a linear warm-up and decay of the learning rate over the progress.

        Args:
            optimizer: its learning rates are scaled.
            steps: that training would take without a time limit.
            warmup: share of the steps in which the rate rises.
        """
        rise = int(warmup * steps) / steps

        def scale(step: int) -> float:
            progress = max(step / steps, self.share())
            return progress / rise if progress < rise else max(0.0, (1 - progress) / (1 - rise))

        return LambdaLR(optimizer, scale)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops training when the time is used up; the Trainer then evaluates and saves once more."""
        if self.share() >= 1:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stores the time used."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / SECONDS).write_text(str(self._seconds()), encoding="utf-8")


def _read_number(file: Path) -> float:
    """Reads a number; 0 if a killed run left no complete file."""
    try:
        return float(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


class Progress(TrainerCallback):  # type: ignore[misc]
    """A progress bar over the steps; silent if the output is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar at the current step: 0, or that of the checkpoint in a resumed run."""
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fit", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advances the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Logs the metric that decides which epoch is best, and shows it in the bar."""
        value = metrics[f"eval_{args.metric_for_best_model}"]
        log.info("epoch %.0f: validation %s %.4f", state.epoch, args.metric_for_best_model, value)
        self._bar.set_postfix({args.metric_for_best_model: f"{value:.4f}"})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        self._bar.close()
