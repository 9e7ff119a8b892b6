"""What is said of workers that failed: whose fault it was, and where each of them was."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

# How gloo and NCCL name a connection whose other end has gone, or has hung.
_LOST_PEER = ("peer", "Connection reset", "NCCL", "Socket", "closed connection", "Timed out")


@dataclass(frozen=True)
class Failure:
    """An exception of one worker.

    Attributes:
        rank: the worker.
        message: what to tell the user.
        expected: whether this project raised it, so that the message says all there is to say, and
            another try would end the same way.
        trace: the traceback.
    """

    rank: int
    message: str
    expected: bool
    trace: str

    @staticmethod
    def of(rank: int, error: Exception) -> "Failure":
        """The failure of a worker by the exception that ended it."""
        own = type(error).__module__.startswith(("pipeline.", "ple."))
        message = str(error) if own else f"{type(error).__name__}: {error}"
        # A checkpoint that could not be written for want of a worker is no fault of its own.
        lost = type(error).__name__ == "CheckpointError" and _tells_of_lost_peer(message)
        return Failure(rank, message, own and not lost, traceback.format_exc())


@dataclass(frozen=True)
class Place:
    """Where a worker was when it was last heard of.

    Attributes:
        step: of the run, from 1.
        phase: what it was doing.
        since: seconds it had been doing that.
    """

    step: int
    phase: str
    since: float

    def __str__(self) -> str:
        return f"{self.phase}, step {self.step}, for {self.since:.0f} s"


def failure_message(
    failures: Sequence[Failure],
    workers: int,
    error: object,
    places: Mapping[int, Place] | None = None,
) -> str:
    """The failure that brought the others about, as far as that can be told.

    Args:
        failures: exceptions the workers posted before they ended.
        workers: how many there were.
        error: what Ray raised; None = it is not known yet.
        places: where each worker was when it was last heard of.
    """
    own = [f for f in failures if f.expected or not _tells_of_lost_peer(f.message)]
    if own:
        first = min(own, key=lambda f: (not f.expected, f.rank))
        return first.message if first.expected else f"{first.message}\n{first.trace}"
    where = "".join(
        f"; worker {rank} was last at: {p}" for rank, p in sorted((places or {}).items())
    )
    if any("Timed out" in f.message for f in failures):
        return (
            "the workers waited for one another longer than failures.collective_timeout_seconds"
            f"{where}"
        )
    # Nobody failed by itself: a process died without a word, and others missed it.
    last = "" if error is None else str(error).splitlines()[-1]
    told = f"; Ray's logs tell more: {shorten(last, 160, placeholder=' ...')}" if last else ""
    silent = sorted(set(range(workers)) - {f.rank for f in failures})
    return (
        f"worker(s) {', '.join(map(str, silent)) or 'unknown'} of {workers} died (killed, out of "
        "memory, or a lost node); if memory ran out, lower data.batch_size, data.shuffle_rows or "
        f"train.workers{told}{where}"
    )


def _tells_of_lost_peer(message: str) -> bool:
    return any(word in message for word in _LOST_PEER)
