"""Workers that agree: what goes wrong on one is raised on all."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from pipeline.checkpoint.errors import CheckpointError

T = TypeVar("T")
# A worker on a slow store may keep the others waiting as long as this.
_TIMEOUT = timedelta(hours=1)


class Workers:
    """A group of all workers for checkpoints alone, so that it never meets the loop's traffic."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.is_chief = self.rank == 0

    def from_chief(self, what: str, function: Callable[[], T]) -> T:
        """What the function returned on the chief, on all. Raises CheckpointError on all."""
        outcome: list[Any] = [self._guarded(function) if self.is_chief else None]
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if isinstance(outcome[0], _Failure):
            raise CheckpointError(outcome[0].told(what, {0: outcome[0].text}))
        return outcome[0]

    def from_all(self, what: str, function: Callable[[], T]) -> list[T]:
        """What the function returned on each, by rank. Raises CheckpointError on all."""
        outcomes: list[Any] = [None] * self.count
        dist.all_gather_object(outcomes, self._guarded(function), group=self.group)
        failures = {r: o for r, o in enumerate(outcomes) if isinstance(o, _Failure)}
        if failures:
            texts = {rank: failure.text for rank, failure in failures.items()}
            raise CheckpointError(next(iter(failures.values())).told(what, texts))
        return outcomes

    def _guarded(self, function: Callable[[], T]) -> "T | _Failure":
        try:
            return function()
        except Exception as error:
            return _Failure.of(error)


class _Failure:
    """An exception on its way to the other workers."""

    def __init__(self, text: str, explained: bool) -> None:
        self.text, self.explained = text, explained

    @staticmethod
    def of(error: BaseException) -> "_Failure":
        if isinstance(error, CheckpointError):
            return _Failure(str(error), True)
        # A bug must stay recognisable; what a file system says speaks for itself.
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return _Failure(text, False)

    def told(self, what: str, texts: dict[int, str]) -> str:
        if self.explained:
            return self.text
        return f"{what}: {_by_worker(texts)}"


def explained(what: str, error: BaseException) -> CheckpointError:
    """What torch.distributed.checkpoint raised, as an error that a user can read."""
    if isinstance(error, CheckpointError):
        return error
    if not isinstance(error, CheckpointException):
        return CheckpointError(f"{what}: {type(error).__name__}: {error}")
    failures = {rank: _Failure.of(failure) for rank, (failure, _) in error.failures.items()}
    texts = {rank: failure.text for rank, failure in sorted(failures.items())}
    return CheckpointError(next(iter(failures.values())).told(what, texts))


def _by_worker(texts: dict[int, str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, text in texts.items():
        ranks.setdefault(text, []).append(rank)
    return "; ".join(
        f"{text} (worker {', '.join(map(str, those))})" for text, those in ranks.items()
    )
