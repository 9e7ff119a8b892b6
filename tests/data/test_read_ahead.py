"""The thread ahead of its consumer: bounded, in turn, and never a reason to wait for ever."""

import threading
import time
from collections.abc import Generator

import pytest

from pipeline.data.read_ahead import ReadAhead


class Maker:
    """Makes numbers, and remembers how many."""

    def __init__(self, stop: int, error: Exception | None = None) -> None:
        self.stop, self.error = stop, error
        self.made = 0
        self.closed = False

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self.stop):
                self.made = number + 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def settled(maker: Maker) -> int:
    """How many are made once nothing more happens."""
    time.sleep(0.1)
    return maker.made


def drain(reading: ReadAhead[int]) -> list[int]:
    items = []
    while (item := reading.get()) is not None:
        items.append(item)
    return items


def test_all_items_then_none() -> None:
    reading = ReadAhead(Maker(100), 3, "t")
    assert drain(reading) == list(range(100))
    assert reading.get() is None


def test_the_limit() -> None:
    maker = Maker(100)
    reading = ReadAhead(maker, 3, "t")
    assert settled(maker) == 4  # three wait, one is in the thread's hand
    reading.get()
    assert settled(maker) == 4
    reading.get()
    assert settled(maker) == 6
    reading.close()
    assert maker.closed
    assert reading.get() is None


def test_an_error_comes_after_the_items_before_it() -> None:
    reading = ReadAhead(Maker(5, ValueError("bad page")), 2, "t")
    assert [reading.get() for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="bad page"):
        reading.get()
    assert reading.get() is None


def test_an_error_in_making_the_generator() -> None:
    def broken() -> Generator[int, None, None]:
        raise MemoryError

    with pytest.raises(MemoryError):
        ReadAhead(broken, 2, "t").get()


def test_a_primed_one_waits_its_turn_within_the_same_limit() -> None:
    first, second = Maker(6), Maker(6)
    reading = ReadAhead(first, 4, "t")
    primed = ReadAhead(second, 4, "t", before=reading)
    assert settled(first) == 5
    assert second.made == 0
    reading.get()
    reading.get()  # two are left, then the last one is made
    assert (settled(first), second.made) == (6, 1)  # four wait, one is in the hand
    reading.get()
    reading.get()
    assert settled(second) == 3  # two and two wait
    assert drain(reading) == [4, 5]
    primed.claim()
    assert drain(primed) == list(range(6))


@pytest.mark.parametrize("end", ["close", "claim", "fail"])
def test_a_primed_one_never_waits_for_one_that_is_given_up(end: str) -> None:
    first = Maker(1, OSError()) if end == "fail" else Maker(100)
    reading = ReadAhead(first, 2, "t")
    primed = ReadAhead(Maker(6), 4, "t", before=reading)
    if end == "close":
        reading.close()
    if end != "fail":
        primed.claim()
    else:
        with pytest.raises(OSError):
            drain(reading)
    assert drain(primed) == list(range(6))
    reading.close()
    assert threading.active_count() < 20
