"""What ends a training for a reason the user can act on."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the place and the likely remedy."""
