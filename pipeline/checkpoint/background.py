"""A save that goes on beside training."""

import threading
from collections.abc import Callable


class BackgroundSave:
    """One save on its way: the function runs in a thread from now on."""

    def __init__(self, step: int, function: Callable[[], None]) -> None:
        self.step = step
        self._function = function
        self._error: Exception | None = None
        # A daemon: a process that has nothing else to do must not wait for a worker that is gone.
        self._thread = threading.Thread(target=self._run, name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Returns when it is committed.

        Raises:
            CheckpointError: it failed; any other error is a fault of this code, which must not pass
                for a checkpoint.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._function()
        except Exception as error:
            self._error = error
