"""Faults of single values, raised where they are seen and placed where the file is known."""

from pipeline.data.manifest import DatasetError


class BadValueError(DatasetError):
    """A value cannot be used.

    Attributes:
        column: the column's name.
        row: its row within the batch at hand.
        problem: what is wrong with the value, and what to do about it.
    """

    def __init__(self, column: str, row: int, problem: str) -> None:
        super().__init__(f"column {column!r}, row {row}: {problem}")
        self.column = column
        self.row = row
        self.problem = problem


class BadColumnError(DatasetError):
    """A whole column cannot be used: it is absent or of a type that does not convert."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"column {column!r}: {problem}")
        self.column = column
        self.problem = problem
