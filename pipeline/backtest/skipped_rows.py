"""Rows that no version is judged on because they cannot be used, as ``data.faults`` allows.

The policies are those of training, but for three things: a label or an id that cannot be used
costs its row and no others (``skip_row_group`` too); of a row group that turns out damaged what
was decoded before is judged; the ceiling holds for every period by itself, as a day without most
of its rows would show figures of few.
"""

from collections.abc import Sequence

from pipeline.config.faults import FaultsConfig
from pipeline.data.faults import ShardError
from pipeline.data.losses import Loss, merged_losses, rows_by_kind, worst_shards
from pipeline.data.manifest import DatasetError
from pipeline.page import Table


class SkippedRows:
    """The account of one pass over the rows.

    Args:
        name: of the rows, for messages.
        faults: what may be skipped.

    Attributes:
        rows: of all periods so far, usable or not.
    """

    def __init__(self, name: str, faults: FaultsConfig) -> None:
        self._name = name
        self._faults = faults
        self._losses: list[Loss] = []
        self._before, self._rows_before = 0, 0
        self.rows = 0

    @property
    def losses(self) -> list[Loss]:
        """By file, row group and kind of fault."""
        return merged_losses(self._losses)

    @property
    def lost(self) -> int:
        """Rows of all periods that were skipped."""
        return sum(loss.rows for loss in self._losses)

    @property
    def lost_in_period(self) -> int:
        return sum(loss.rows for loss in self._losses[self._before :])

    def begin(self) -> None:
        """The rows of another period follow."""
        self._before, self._rows_before = len(self._losses), self.rows

    def skip(self, fault: ShardError, file: str, group: int, rows: int) -> None:
        """Counts rows of a row group as lost; raises the fault where it must not be skipped."""
        if self._faults.of(fault.kind) == "error":
            raise fault
        if rows:
            self._losses.append(Loss(self._name, file, group, fault.kind, rows, fault.reason))

    def check(self, period: str) -> None:
        """Raises DatasetError where the period, now over, lost too many."""
        lost, rows = self.lost_in_period, self.rows - self._rows_before
        if lost > self._faults.ceiling * rows:
            raise DatasetError(
                f"{self._name}, {period}: {lost:,} of {rows:,} rows ({lost / rows:.2%}) could not "
                f"be used, more than data.faults.max_lost_fraction ({self._faults.ceiling:g}) "
                f"allows. Worst: {worst_shards(merged_losses(self._losses[self._before :]))}. Mend "
                "or restore these files, or raise max_lost_fraction"
            )

    def remarks(self) -> list[str]:
        """What was lost, in a sentence; nothing where nothing was."""
        if not self.lost:
            return []
        kinds = ", ".join(f"{kind} {rows:,}" for kind, rows in rows_by_kind(self._losses).items())
        return [
            f"{self.lost:,} of {self.rows:,} rows could not be used ({kinds}): no version is "
            "judged on them. data.faults allows it."
        ]


def loss_table(losses: Sequence[Loss]) -> Table:
    """A row per file, row group and kind of fault."""
    return ["file", "row group", "fault", "rows", "reason"], [
        [loss.shard, str(loss.row_group), loss.kind, f"{loss.rows:,}", loss.reason]
        for loss in losses
    ]
