"""When a checkpoint is due besides epoch ends and evaluations that improve."""

import time
from collections.abc import Callable

from pipeline.config.checkpoint import CheckpointConfig


class SaveSchedule:
    """Tells when the next checkpoint is due, by steps and by time.

    Steps give the same answer on every worker. Clocks do not: ask :meth:`due_by_time` on the chief
    and send its answer to the others (with whatever is sent at those steps anyway).

    Args:
        config: how often.
        now: seconds, from any start.
    """

    def __init__(self, config: CheckpointConfig, now: Callable[[], float] = time.monotonic) -> None:
        self._config, self._now = config, now
        self._last = now()

    @property
    def by_time(self) -> bool:
        """Whether time plays a part at all; else nobody need be asked."""
        return self._config.every_minutes is not None

    def due_by_step(self, step: int) -> bool:
        """Whether ``step`` steps done is a multiple of every_steps."""
        every = self._config.every_steps
        return every is not None and step % every == 0

    def due_by_time(self) -> bool:
        """Whether every_minutes have passed since the last save was begun. For the chief."""
        minutes = self._config.every_minutes
        return minutes is not None and self._now() - self._last >= 60.0 * minutes

    def saved(self) -> None:
        """A checkpoint was begun, for whatever reason: the time starts anew."""
        self._last = self._now()
