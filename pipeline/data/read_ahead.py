"""A thread that makes items ahead of their consumer, and never leaves it waiting for nothing."""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

# How long close() waits for a thread that is stuck in a read; it ends by itself after that.
_PATIENCE = 5.0
# How often a waiting consumer looks whether the thread is alive (an interpreter may be ending).
_HEARTBEAT = 1.0


class _Signal:
    """Wakes the threads of a chain that rest; costs next to nothing while none does."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.resting = 0

    def rest_while(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            # Counted before the first look: whoever changes something after it sees the count.
            self.resting += 1
            while condition():
                self.changed.wait()
            self.resting -= 1

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()


@dataclass(frozen=True)
class _End:
    """Stands after the last item, with what stopped the thread, if anything did."""

    error: BaseException | None


class ReadAhead(Generic[Item]):
    """Runs a generator in a thread, at most ``limit`` items ahead.

    Once the limit is reached it rests until half of the items are taken.

    Until it is claimed it makes way for ``before``, whose items are needed earlier: it starts when
    that one has made its last item, and the items of both together keep to the limit.

    Args:
        make: gives the generator; called in the thread.
        limit: items that may wait.
        name: of the thread.
        before: what is consumed first, or None.
    """

    def __init__(
        self,
        make: Callable[[], Generator[Item, None, None]],
        limit: int,
        name: str,
        before: "ReadAhead[Item] | None" = None,
    ) -> None:
        self._make = make
        self._limit = limit
        self._before = before
        # One signal for a chain of them: each looks at the one before.
        self._signal: _Signal = before._signal if before else _Signal()
        self._items: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
        self._stopped = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def claim(self) -> None:
        """Its items are needed now."""
        self._before = None
        self._signal.notify()

    def get(self) -> Item | None:
        """The next item, None after the last one; raises what stopped the thread."""
        if self._stopped:
            return None
        item = self._next()
        if isinstance(item, _End):
            self._stopped = True
            if item.error is not None:
                raise item.error
            return None
        # Not at every item: a thread that is woken competes with the one that wakes it.
        if self._signal.resting and self._waiting() <= self._limit // 2:
            self._signal.notify()
        return item

    def close(self) -> None:
        """Ends the thread and forgets its items."""
        self._stopped = True
        with suppress(queue.Empty):
            while True:
                self._items.get_nowait()
        # For a consumer that waits in another thread.
        self._items.put(_End(None))
        self._signal.notify()
        if threading.current_thread() is not self._thread:  # the garbage collector's choice
            self._thread.join(_PATIENCE)

    def _next(self) -> Item | _End:
        while True:
            try:
                return self._items.get(timeout=_HEARTBEAT)
            except queue.Empty:
                if not self._thread.is_alive() and self._items.empty():
                    raise RuntimeError("the reading thread ended without a result") from None

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            self._signal.rest_while(self._held_back)
            if not self._stopped:
                source = self._make()
                try:
                    for item in source:
                        if self._full():
                            self._signal.rest_while(self._full)
                        if self._stopped:
                            return
                        self._items.put(item)
                finally:
                    source.close()
        except BaseException as caught:
            error = caught
        finally:
            self._items.put(_End(error))
            self._ended = True
            self._signal.notify()

    def _held_back(self) -> bool:
        before = self._before
        return before is not None and not (before._ended or before._stopped or self._stopped)

    def _full(self) -> bool:
        if self._stopped:
            return False
        before, waiting = self._before, self._waiting()
        if before is not None:
            waiting += before._waiting()
        return waiting >= self._limit

    def _waiting(self) -> int:
        """Items made and not taken; the end it may have put after them is none."""
        return max(0, self._items.qsize() - self._ended)
