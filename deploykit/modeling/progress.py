"""What is seen of a fit while it runs: a bar, and a line an epoch."""

import logging
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

log = logging.getLogger(__name__)


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
