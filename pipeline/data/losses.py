"""The account of rows that could not be used: which, why, and whether they are too many."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config.faults import FaultsConfig
from pipeline.data.encoded import EncodedRows
from pipeline.data.manifest import DatasetError
from pipeline.data.plan import SplitIndex

_NAMED_SHARDS = 5
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Loss:
    """Rows of one row group that were skipped for one kind of fault, over all passes.

    Attributes:
        split: of the dataset.
        shard: the file, as messages name it.
        row_group: its number in the file.
        kind: ``unreadable``, ``schema_drift``, ``labels`` or ``ids``.
        rows: how many rows.
        reason: of the first of them.
    """

    split: str
    shard: str
    row_group: int
    kind: str
    rows: int
    reason: str


class LostRows:
    """Rows of one split that one worker skipped.

    Codes and verdicts are given by reading threads, rows are counted by the consumer of batches,
    when a batch is handed out: what was read ahead and thrown away counts nothing.

    Attributes:
        epoch: what was lost since :meth:`begin_epoch`.
        total: what was lost in all.
    """

    def __init__(
        self, index: SplitIndex, name_of: Callable[[str], str], faults: FaultsConfig
    ) -> None:
        self.faults = faults
        self._index = index
        self._name_of = name_of
        self._lock = threading.Lock()
        self._codes: dict[tuple[str, int], int] = {}
        self._kinds: list[tuple[str, int, str]] = []
        self._verdicts: dict[int, int] = {}
        self.epoch: Counter[int] = Counter()
        self.total: Counter[int] = Counter()

    # By the reading thread

    def code_of(self, kind: str, group: int, reason: str) -> int:
        """The number, 1 or above, that stands for a kind of fault in a row group of the split."""
        with self._lock:
            code = self._codes.setdefault((kind, group), len(self._kinds) + 1)
            if code > len(self._kinds):
                self._kinds.append((kind, group, reason[:_REASON_LENGTH]))
            return code

    def judge(self, group: int, code: int) -> None:
        """Keeps for later passes that a row group is void (its code), or sound (0)."""
        self._verdicts[group] = code

    def verdict(self, group: int) -> int | None:
        """What :meth:`judge` was told; None = nothing yet."""
        return self._verdicts.get(group)

    # By the consumer

    def begin_epoch(self) -> None:
        self.epoch = Counter()

    def count(self, rows_by_code: Mapping[int, int]) -> None:
        """Adds a batch's void rows. Raises DatasetError past this worker's ceiling."""
        self.epoch.update(rows_by_code)
        self.total.update(rows_by_code)
        lost = self.rows_of_epoch
        if self.too_many(lost):
            raise self.ceiling_error(lost, self.losses(self.epoch))

    def state_dict(self) -> list[dict[str, Any]]:
        """The account as plain records, fit for :meth:`load_state_dict` of any worker."""
        with self._lock:
            kinds = list(self._kinds)
        return [
            {"kind": kind, "group": group, "reason": reason}
            | {"total": self.total[code], "epoch": self.epoch[code]}
            for code, (kind, group, reason) in enumerate(kinds, start=1)
            if self.total[code]
        ]

    def load_state_dict(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Goes on with an account, or with the sum of several, in place of what was counted."""
        self.epoch, self.total = Counter(), Counter()
        for record in records:
            code = self.code_of(record["kind"], record["group"], record["reason"])
            self.total[code] += record["total"]
            self.epoch[code] += record["epoch"]

    @property
    def rows_of_epoch(self) -> int:
        return sum(self.epoch.values())

    def too_many(self, lost: int) -> bool:
        """Whether an epoch may not lose so many rows, of all workers or of one alone."""
        return lost > self.faults.ceiling * self._index.rows

    def losses(self, counts: Mapping[int, int] | None = None) -> list[Loss]:
        """The account, in the order of the first occurrence; of all passes, or of ``counts``."""
        losses = []
        for code, rows in sorted((self.total if counts is None else counts).items()):
            kind, group, reason = self._kinds[code - 1]
            path, number, _ = self._index.place(int(self._index.group_start[group]))
            losses.append(Loss(self._index.split, self._name_of(path), number, kind, rows, reason))
        return losses

    def ceiling_error(self, lost: int, losses: Sequence[Loss]) -> DatasetError:
        """What stops the run: the worst shards, their rows, and what to do."""
        return DatasetError(
            f"split {self._index.split!r}: {lost:,} of {self._index.rows:,} rows "
            f"({lost / self._index.rows:.2%}) of this epoch could not be used, more than "
            f"data.faults.max_lost_fraction ({self.faults.ceiling:g}) allows. Worst: "
            f"{worst_shards(losses)}. Mend or restore these files, or raise max_lost_fraction"
        )


def void_rows_by_code(rows: Iterable[tuple[EncodedRows, int, int]]) -> Counter[int]:
    """Void rows by code among rows start … stop-1 of some encoded rows."""
    counts: Counter[int] = Counter()
    for encoded, start, stop in rows:
        if encoded.lost_B is not None:
            codes, times = np.unique(encoded.lost_B[start:stop], return_counts=True)
            counts.update(dict(zip(codes.tolist(), times.tolist(), strict=True)))
    del counts[0]
    return counts


def merged_losses(losses: Iterable[Loss]) -> list[Loss]:
    """One record per split, shard, row group and kind, whoever lost the rows."""
    merged: dict[tuple[str, str, int, str], Loss] = {}
    for loss in losses:
        key = (loss.split, loss.shard, loss.row_group, loss.kind)
        known = merged.get(key)
        rows = loss.rows + (0 if known is None else known.rows)
        merged[key] = Loss(*key, rows, loss.reason if known is None else known.reason)
    return [merged[key] for key in sorted(merged)]


def rows_by_kind(losses: Iterable[Loss]) -> dict[str, int]:
    """Lost rows by kind of fault."""
    counts: Counter[str] = Counter()
    for loss in losses:
        counts[loss.kind] += loss.rows
    return dict(sorted(counts.items()))


def loss_table(losses: Iterable[Loss]) -> list[dict[str, object]]:
    """The records as plain JSON."""
    return [asdict(loss) for loss in losses]


def worst_shards(losses: Sequence[Loss]) -> str:
    """The files that lost most rows, with the first reason of each."""
    by_shard: dict[str, list[Loss]] = {}
    for loss in losses:
        by_shard.setdefault(loss.shard, []).append(loss)
    rows = {shard: sum(loss.rows for loss in of) for shard, of in by_shard.items()}
    worst = sorted(rows, key=lambda shard: (-rows[shard], shard))
    named = []
    for shard in worst[:_NAMED_SHARDS]:
        first = by_shard[shard][0]
        named.append(
            f"{shard} ({rows[shard]:,} rows; {first.kind}, row group {first.row_group}: "
            f"{first.reason})"
        )
    more = len(worst) - len(named)
    return "; ".join(named) + (f"; and {more} shards more" if more > 0 else "")
