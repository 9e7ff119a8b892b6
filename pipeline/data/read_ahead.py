"""A thread that makes items ahead of their consumer, and never leaves it waiting for nothing."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

Item = TypeVar("Item")

# How long close() waits for a thread that is stuck in a read; it ends by itself after that.
_PATIENCE = 5.0


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
        # One condition for a chain of them: each looks at the one before.
        self._changed: threading.Condition = before._changed if before else threading.Condition()
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._stopped = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def claim(self) -> None:
        """Its items are needed now."""
        with self._changed:
            self._before = None
            self._changed.notify_all()

    def get(self) -> Item | None:
        """The next item, None after the last one; raises what stopped the thread."""
        with self._changed:
            while not self._items and not self._ended and not self._stopped:
                # The time-out is for a thread that died without a word (an interpreter ending).
                self._changed.wait(1.0)
                if not self._thread.is_alive() and not self._items and not self._ended:
                    raise RuntimeError("the reading thread ended without a result")
            if self._items:
                item = self._items.popleft()
                # Not at every item: a thread that is woken competes with the one that wakes it.
                if len(self._items) <= self._limit // 2:
                    self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        """Ends the thread and forgets its items."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # the garbage collector's choice
            self._thread.join(_PATIENCE)

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            if self._waits(self._held_back):
                source = self._make()
                try:
                    for item in source:
                        if not self._waits(self._full):
                            return
                        with self._changed:
                            self._items.append(item)
                            self._changed.notify_all()
                finally:
                    source.close()
        except BaseException as caught:
            error = caught
        finally:
            with self._changed:
                self._error, self._ended = error, True
                self._changed.notify_all()

    def _waits(self, condition: Callable[[], bool]) -> bool:
        """Waits while a condition holds; false when the consumer has left."""
        with self._changed:
            while condition() and not self._stopped:
                self._changed.wait()
            return not self._stopped

    def _held_back(self) -> bool:
        before = self._before
        return before is not None and not before._ended and not before._stopped

    def _full(self) -> bool:
        waiting = len(self._items)
        if self._before is not None:
            waiting += len(self._before._items)
        return waiting >= self._limit
