"""What a submission is refused with."""


class SubmissionError(ValueError):
    """The job cannot be submitted or followed; the message says why and what to do."""
