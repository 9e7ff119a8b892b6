"""What a training has done so far: how far it is, what it measured, what it told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar


@dataclass
class Journal:
    """The record of a run, carried from checkpoint to checkpoint.

    Attributes:
        step: steps done; a skipped batch is one.
        logged, evaluated: steps done when losses were last logged, the model last evaluated.
        skipped: batches whose loss was beyond use.
        history: ``{step, epoch, split, task, metric, value}`` records in order.
        validation: latest validation metrics by task.
        postings: metrics handed to the reporter, ``{step, epoch, values}``, on the chief.
        rows_trained: rows of this worker.
        training_seconds: spent in training steps, by this worker.
        elapsed: seconds from the first batch on, by this worker.
    """

    step: int = 0
    logged: int = 0
    evaluated: int = 0
    skipped: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    validation: dict[str, dict[str, Any]] = field(default_factory=dict)
    postings: list[dict[str, Any]] = field(default_factory=list)
    rows_trained: int = 0
    training_seconds: float = 0.0
    elapsed: float = 0.0

    _OWN: ClassVar = ("rows_trained", "training_seconds", "elapsed")

    def shared(self) -> dict[str, Any]:
        """What is the same on all workers, and the chief's postings."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self._OWN}

    def own(self) -> dict[str, Any]:
        """What is this worker's alone."""
        return {name: getattr(self, name) for name in self._OWN}

    def load(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Restores what :meth:`shared` and :meth:`own` gave."""
        for name, value in {**shared, **own}.items():
            setattr(self, name, value)
