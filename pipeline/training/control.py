"""What comes from outside while the loop runs, and what the outside may know of it."""

from typing import Protocol

from pipeline.training.guard import Request


class Control(Protocol):
    """The loop's line to whoever started it. No call may keep the loop waiting."""

    def request(self) -> Request:
        """What all workers should do after this step; only the chief is asked."""

    def at(self, step: int, phase: str) -> None:
        """Where this worker is, for the message if it is never heard of again."""


class NoControl:
    """Nobody asks for anything."""

    def request(self) -> Request:
        return Request.NONE

    def at(self, step: int, phase: str) -> None: ...


class TrainingStoppedError(Exception):
    """The training was asked to stop, and did.

    Attributes:
        step: steps done.
        saved: whether a checkpoint of this step stands; without one nothing was done yet.
    """

    def __init__(self, step: int, saved: bool) -> None:
        super().__init__(step, saved)
        self.step, self.saved = step, saved
