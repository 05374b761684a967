"""What happens beside the steps: the progress line, saving by the clock, a clean stop."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from diffusiongpt.training.clock import RunClock, agree

logger = logging.getLogger(__name__)


class ClockCallback(TrainerCallback):
    """Starts the clock, stops the run when it is over, saves every few minutes and on SIGTERM."""

    def __init__(self, clock: RunClock, save_every_minutes: float) -> None:
        self.clock = clock
        self.save_every_s = 60 * save_every_minutes
        self.saved_at = 0.0
        self.terminated = False
        self._previous: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting and take SIGTERM."""
        self.clock.start()
        self.saved_at = 0.0
        self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give SIGTERM back."""
        signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint or for the end when it is time."""
        self.clock.tick()
        over = self.clock.progress(state.global_step) >= 1
        due = self.clock.seconds_now - self.saved_at >= self.save_every_s
        terminated = bool(agree(self.terminated))
        if over or due or terminated:
            control.should_save = True
            self.saved_at = self.clock.seconds_now
        if over or terminated:
            control.should_training_stop = True


class ProgressCallback(TrainerCallback):
    """Loss, tokens per second and the time that is left: a bar, or a line where there is none.

    On the first process; `has_bar` is whether somebody looks on.
    """

    def __init__(self, clock: RunClock, tokens_per_step: int, has_bar: bool) -> None:
        self.clock, self.tokens_per_step, self.has_bar = clock, tokens_per_step, has_bar
        self.bar: Any = None
        self.last = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where the run stands."""
        shown = self.has_bar and state.is_world_process_zero
        self.bar = tqdm(total=1000, unit="‰", disable=not shown, mininterval=5)
        self.last = (state.global_step, time.monotonic())
        if state.global_step and state.is_world_process_zero:
            logger.info("going on after step %d", state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show what the last steps did."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        step, now = state.global_step, time.monotonic()
        rate = (step - self.last[0]) * self.tokens_per_step / max(now - self.last[1], 1e-9)
        self.last = (step, now)
        progress = min(self.clock.progress(step), 1.0)
        left_s = self.clock.elapsed_s * (1 - progress) / max(progress, 1e-9)
        said = (
            f"step {step} loss {float(logs['loss']):.3f} lr {float(logs['learning_rate']):.1e} "
            f"{rate:,.0f} tokens/s {left_s / 60:.1f} min left"
        )
        if not self.has_bar:
            logger.info("%s", said)
            return
        self.bar.n = round(1000 * progress)
        self.bar.set_postfix_str(said)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar where the run stands."""
        if self.bar is not None:
            self.bar.n = round(1000 * min(self.clock.progress(state.global_step), 1.0))
            self.bar.refresh()
            self.bar.close()
