"""The error of this package."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it, the reason and the remedy."""
