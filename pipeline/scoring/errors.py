"""What ends a scoring job with a reason."""


class ScoringError(ValueError):
    """Rows cannot be scored, or not to that place; the message says why and what to do."""
