"""The batches of one epoch, as the loop takes them."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from pipeline.data.batch import Batch
from pipeline.data.read_ahead import ReadAhead


@dataclass(frozen=True)
class Made:
    """A batch, what was seen since the one before it, and its void rows by code."""

    batch: Batch
    counters: Counter[str]
    lost: Counter[int]


class EpochBatches(Iterator[Batch]):
    """The batches of an epoch, in order; ``close`` (or dropping it) ends the reading.

    Args:
        take: enters a batch that is handed out into the reader's books.
        reading: makes the batches.
    """

    def __init__(self, take: Callable[[Made], Batch], reading: ReadAhead[Made]) -> None:
        self._take = take
        self._reading = reading
        self._next: Made | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Raises DatasetError where the data cannot be used, or too much of it is lost."""
        if self.peek() is None:
            raise StopIteration
        made, self._next = self._next, None
        assert made is not None
        try:
            return self._take(made)
        except BaseException:
            self.close()
            raise

    def peek(self) -> Batch | None:
        """The batch that comes next, None at the end. It is in no books before it is handed out.

        Raises:
            DatasetError: the data cannot be used.
        """
        if self._next is None:
            try:
                self._next = self._reading.get()
            except BaseException:
                self.close()
                raise
        return None if self._next is None else self._next.batch

    def close(self) -> None:
        self._reading.close()

    def __del__(self) -> None:
        self.close()
