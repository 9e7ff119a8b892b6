"""Stopping a run from outside: signals to the driver, and the time it has to end."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED, INTERRUPTED = 3, 130
# The thread in which Ray Train's blocking call waits for the workers.
TRAINING_THREAD = "ray-train"


def still_waited_for() -> bool:
    """Whether Ray Train's call goes on in its thread: Ray must not be shut down under it, which
    would end the process then and there with a status of Ray's own."""
    return any(thread.name == TRAINING_THREAD for thread in threading.enumerate())


def leave(status: int) -> int:
    """The exit status of the process; ends it at once if Ray Train's call was left behind."""
    if still_waited_for():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


class RunStopped(KeyboardInterrupt):
    """A run was stopped on request.

    Attributes:
        saved: whether a checkpoint stands, from which ``--resume`` goes on.
    """

    def __init__(self, message: str, saved: bool) -> None:
        super().__init__(message)
        self.saved = saved

    @property
    def exit_status(self) -> int:
        return STOPPED if self.saved else INTERRUPTED


class StopSignals:
    """Turns SIGTERM and SIGINT (Ctrl-C) into a flag; a second SIGINT raises KeyboardInterrupt.

    A context manager for the main thread; in any other it does nothing. To be entered after
    ``ray.init``, which installs handlers of its own.

    Args:
        within: seconds from the first signal to the end of the process.
        last_words: called when they are over; returns the exit status.
    """

    def __init__(self, within: float, last_words: Callable[[], int]) -> None:
        self.within, self._last_words = within, last_words
        self._before: dict[signal.Signals, Any] = {}
        self._timer: threading.Timer | None = None
        self._since: float | None = None
        self.requested = threading.Event()

    @property
    def seconds_left(self) -> float:
        """Of the time the first signal gave."""
        if self._since is None:
            return self.within
        return max(0.0, self.within - (time.monotonic() - self._since))

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._since = time.monotonic()
        self._timer = threading.Timer(self.within, self._end)
        self._timer.daemon = True
        self._timer.start()
        self.requested.set()

    def _end(self) -> None:
        status = INTERRUPTED
        try:
            status = self._last_words()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
