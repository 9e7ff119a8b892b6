"""Faults of single values, raised where they are seen and placed where the file is known."""

import numpy as np

from pipeline.data.manifest import DatasetError


class BadValueError(DatasetError):
    """Values of a column cannot be used.

    Attributes:
        column: the column's name.
        row: the first such row within the batch at hand.
        problem: what is wrong with its value, and what to do about it.
        kind: ``labels`` or ``ids``, as in ``data.faults``.
        rows: int64, ascending: all rows of the batch with such a value in this column.
    """

    def __init__(
        self,
        column: str,
        row: int,
        problem: str,
        *,
        kind: str = "ids",
        rows: np.ndarray | None = None,
    ) -> None:
        super().__init__(f"column {column!r}, row {row}: {problem}")
        self.column = column
        self.row = row
        self.problem = problem
        self.kind = kind
        self.rows = np.array([row]) if rows is None else rows

    def at(self, row_of: np.ndarray) -> "BadValueError":
        """The same fault where value i of the batch belongs to row ``row_of[i]``, ascending."""
        rows = np.unique(row_of[self.rows])
        return BadValueError(self.column, int(rows[0]), self.problem, kind=self.kind, rows=rows)


class BadColumnError(DatasetError):
    """A whole column cannot be used: it is absent or of a type that does not convert."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"column {column!r}: {problem}")
        self.column = column
        self.problem = problem


class ShardError(DatasetError):
    """A shard, or a row group of one, cannot be used.

    Attributes:
        kind: ``unreadable``, ``schema_drift``, ``labels`` or ``ids``, as in ``data.faults``.
        reason: what is wrong, without the file's name.
    """

    def __init__(self, kind: str, where: str, reason: str, remedy: str) -> None:
        reason = " ".join(reason.split())  # what libraries say may run over several lines
        super().__init__(f"{where}: {reason}; {remedy}")
        self.kind = kind
        self.reason = reason


class OutageError(DatasetError):
    """A store does not hand out the bytes of a file. Never a reason to skip rows."""
