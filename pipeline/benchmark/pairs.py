"""Subjects measured in turn, so that what else the machine does meets all of them alike."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Ratios of the pairs of one measurement: median, lowest and highest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> "Ratio":
        return Ratio(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(subjects: Mapping[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Runs every subject once to warm up, then ``pairs`` rounds of all of them in turn.

    Returns:
        what each subject returned, by round; the warm-up is left out.
    """
    measured: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(pairs + 1):
        for name, subject in subjects.items():
            value = subject()
            if turn:
                measured[name].append(value)
    return measured
