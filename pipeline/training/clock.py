"""Where the time goes: seconds by named phase of one worker."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch

Item = TypeVar("Item")

# Marks kept before they are added up, whether or not anybody asked.
_MARKS = 1 << 14


class PhaseClock:
    """Adds up seconds by phase, in two ways.

    :meth:`phase` encloses what it measures; a phase within a phase counts as itself only. Within a
    step, from :meth:`start` to :meth:`stop`, :meth:`lap` gives all time since the lap before to one
    phase, less what phases in between took. So seconds add up to wall-clock time.

    On CUDA a lap is an event in the stream: it gives the time the device took to get there, and
    nothing waits for it until :attr:`seconds` is read. Phases outside of steps are on the host's
    clock always.

    Args:
        device: of the steps.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._seconds: dict[str, float] = {}
        # Seconds of the phases within each phase that is open.
        self._within: list[float] = []
        self._in_step = False
        self._open = 0  # phases within the step
        self._marks: list[_Mark] = []
        on_cuda = device is not None and device.type == "cuda"
        self._now: Callable[[], Any] = _cuda_event if on_cuda else time.perf_counter
        self._between = _cuda_seconds if on_cuda else _host_seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far. On CUDA it waits for the laps taken so far."""
        self._add_up()
        return self._seconds

    def start(self) -> None:
        """Starts a step: laps count from here."""
        self._in_step = True
        self._marks.append(("start", "", self._now()))

    def lap(self, name: str) -> None:
        """Gives the time since the last lap to a phase.

        Nothing happens outside a step, and within a phase, whose time is its own.
        """
        if self._in_step and not self._open:
            self._marks.append(("lap", name, self._now()))

    def stop(self) -> None:
        """Ends a step."""
        self._in_step = False
        if len(self._marks) > _MARKS:
            self._add_up()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self._in_step:
            self._marks.append(("open", "", self._now()))
            self._open += 1
            try:
                yield
            finally:
                self._open -= 1
                self._marks.append(("close", name, self._now()))
            return
        start = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.add(name, seconds - self._within.pop())
            if self._within:
                self._within[-1] += seconds

    def add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def waiting(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items, counting the time spent waiting for each."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _add_up(self) -> None:
        """Turns marks into seconds."""
        assert not self._in_step, "seconds are read between steps"
        last: Any = None
        # Stamps of open phases with the seconds of phases within; below them the lap's own.
        stack: list[tuple[Any, float]] = []
        inner = 0.0
        for action, name, stamp in self._marks:
            if action == "start":
                last, inner = stamp, 0.0
            elif action == "open":
                stack.append((stamp, inner))
                inner = 0.0
            elif action == "close":
                opened, outside = stack.pop()
                seconds = self._between(opened, stamp)
                self.add(name, seconds - inner)
                inner = outside + seconds
            else:
                self.add(name, self._between(last, stamp) - inner)
                last, inner = stamp, 0.0
        self._marks.clear()


def time_shares(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """Shares of a total by phase, and as ``other`` what no phase accounts for."""
    total = max(total, 1e-9)
    shares = {name: value / total for name, value in seconds.items()}
    return shares | {"other": max(0.0, 1.0 - sum(shares.values()))}


_Mark = tuple[Literal["start", "lap", "open", "close"], str, Any]


def _host_seconds(first: float, second: float) -> float:
    return second - first


def _cuda_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _cuda_seconds(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
    second.synchronize()
    return first.elapsed_time(second) / 1000
