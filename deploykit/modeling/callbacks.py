"""Callbacks of transformers' Trainer: a limit on the time of a fit, and a progress bar."""

import logging
import time
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import TrainerCallback

SECONDS = "seconds.txt"  # the time used so far, beside the Trainer's own files of a checkpoint
log = logging.getLogger(__name__)


class Deadline(TrainerCallback):  # type: ignore[misc]
    """Ends a fit when its minutes are over; the learning rate has then come down as it does at the last step.

    What was done is the share of the steps or of the time, whichever is larger. The time that was used stands in
    each checkpoint, so that a run that was killed has only the rest.
    """

    def __init__(self, minutes: float, checkpoint: Path | None) -> None:
        self._limit = 60 * minutes
        self._used = _noted(checkpoint / SECONDS) if checkpoint else 0.0
        self._started: float | None = None

    def share(self) -> float:
        """Returns how much of the time is over; 1 and more at the end."""
        return self._seconds() / self._limit

    def _seconds(self) -> float:
        return self._used + (0.0 if self._started is None else time.monotonic() - self._started)

    def schedule(self, optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
        """Returns a linear warm-up and decay over what was done.

        Args:
            optimizer: whose rates are scaled.
            steps: of the whole fit, were there time for it.
            warmup: the share in which the rate rises, in whole steps.
        """
        rise = int(warmup * steps) / steps

        def scale(step: int) -> float:
            done = max(step / steps, self.share())
            return done / rise if done < rise else max(0.0, (1 - done) / (1 - rise))

        return LambdaLR(optimizer, scale)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops the fit when the time is over; the Trainer then evaluates and saves once more."""
        if self.share() >= 1:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes down the time that was used."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / SECONDS).write_text(str(self._seconds()), encoding="utf-8")


def _noted(file: Path) -> float:
    """Reads a number; 0 where a kill left none."""
    try:
        return float(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


class Progress(TrainerCallback):  # type: ignore[misc]
    """A bar with what is left; silent where nobody looks at a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar at the step that a resumed run starts from."""
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fit", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Shows the metric that decides."""
        name = f"eval_{args.metric_for_best_model}"
        log.info("epoch %.0f: validation %s %.4f", state.epoch, args.metric_for_best_model, metrics[name])
        self._bar.set_postfix({args.metric_for_best_model: f"{metrics[name]:.4f}"})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        self._bar.close()
