"""From decoded rows to encoded ones, with the rows that cannot be used made void.

Legend: B rows, F single-valued features, N numeric columns, T tasks.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.encoded import EncodedFeatures, EncodedRows, Ragged
from pipeline.data.faults import BadColumnError, BadValueError, ShardError
from pipeline.data.gather import Span, gather_rows
from pipeline.data.keys import KeyEncoder
from pipeline.data.losses import LostRows
from pipeline.data.manifest import DatasetError
from pipeline.data.pieces import Piece
from pipeline.data.plan import SplitIndex
from pipeline.data.targets import TargetEncoder
from pipeline.data.transforms import FeatureTransforms

Ids = type[np.signedinteger[Any]]


class RowEncoder:
    """Raw rows → EncodedRows: features, labels and weights, with faults placed in their file.

    Args:
        transforms, targets: encode the rows.
        index: the split's rows.
        name_of: a shard's path → its name in messages.
        lost: says which faults may be skipped, and numbers them.
        counters: what was seen, by kind.
        keys: encodes key columns, if rows shall carry any.
    """

    def __init__(
        self,
        transforms: FeatureTransforms,
        targets: TargetEncoder,
        index: SplitIndex,
        name_of: Callable[[str], str],
        lost: LostRows,
        counters: Counter[str],
        keys: KeyEncoder | None = None,
    ) -> None:
        self._keys = keys
        self._transforms = transforms
        self._targets = targets
        self._index = index
        self._name_of = name_of
        self._lost = lost
        self._counters = counters
        weighted = {table.feature for table in transforms.tables if table.weighted}
        self._weighted = [name in weighted for name in transforms.list_features]

    def __call__(self, piece: Piece, ids: Ids = np.int32) -> EncodedRows:
        """Raises DatasetError on a fault that may not be skipped."""
        if piece.batch is None:
            return self._void(np.full(piece.size, piece.lost, np.int32), ids)
        try:
            return self._encoded(piece.batch, ids, self._counters)
        except BadValueError as fault:
            self._check_skippable(fault, piece)
        except BadColumnError as fault:
            raise DatasetError(f"{self._place(piece, 0)[0]}: {fault}") from None
        return self._encoded_in_part(piece, ids)

    def inspect(self, batch: pa.RecordBatch, drifted: bool) -> ShardError | None:
        """What makes a whole row group void, if anything in these rows of it does.

        Args:
            batch: rows of one or more row groups.
            drifted: whether a column's type is not the manifest's.
        """
        faults = self._lost.faults
        whole = {kind for kind in ("labels", "ids") if faults.of(kind) == "skip_row_group"}
        if drifted and faults.of("schema_drift") == "skip_row_group":
            whole |= {"schema_drift"}
        for kind, encode in (
            ("ids", lambda: self._transforms.encode(batch, Counter(), np.int32)),
            ("labels", lambda: self._targets.encode(batch)),
        ):
            if not whole & {kind, "schema_drift"}:
                continue
            try:
                encode()
            except BadValueError as fault:
                if fault.kind in whole:
                    reason = f"column {fault.column!r}: {fault.problem}"
                    return ShardError(fault.kind, "", reason, "")
            except BadColumnError as fault:
                if "schema_drift" in whole:
                    return ShardError("schema_drift", "", str(fault), "")
        return None

    def _encoded(self, batch: pa.RecordBatch, ids: Ids, counters: Counter[str]) -> EncodedRows:
        features = self._transforms.encode(batch, counters, ids)
        keys_BK = None if self._keys is None else self._keys.encode(batch)
        return EncodedRows(features, *self._targets.encode(batch, counters), keys_BK=keys_BK)

    def _encoded_in_part(self, piece: Piece, ids: Ids) -> EncodedRows:
        """The piece with its unusable rows void."""
        assert piece.batch is not None
        lost_B = np.zeros(piece.size, np.int32)
        while True:
            usable = np.flatnonzero(lost_B == 0)
            if not usable.size:
                return self._void(lost_B, ids)
            counters: Counter[str] = Counter()
            try:
                rows = self._encoded(piece.batch.take(pa.array(usable)), ids, counters)
                break
            except BadValueError as fault:
                self._check_skippable(fault, piece, usable)
                lost_B[usable[fault.rows]] = self._codes(fault, piece, usable[fault.rows])
        self._counters.update(counters)
        # Behind the usable rows, one void row to be taken for each of the others.
        index_B = np.full(piece.size, usable.size, np.int64)
        index_B[usable] = np.arange(usable.size)
        void = self._void(np.zeros(1, np.int32), ids)
        spans = [Span(rows, 0, rows.rows), Span(void, 0, 1)]
        return replace(gather_rows(spans, index_B), lost_B=lost_B)

    def _check_skippable(
        self, fault: BadValueError, piece: Piece, rows: np.ndarray | None = None
    ) -> None:
        if self._lost.faults.of(fault.kind) == "skip_row":
            return
        row = fault.row if rows is None else int(rows[fault.row])
        name, group, row = self._place(piece, row)
        raise DatasetError(
            f"{name}: row group {group}, column {fault.column!r}, row {row}: {fault.problem}"
        ) from None

    def _codes(self, fault: BadValueError, piece: Piece, rows: np.ndarray) -> np.ndarray:
        """The code of each of these rows of the piece, which may come from several row groups."""
        reason = f"column {fault.column!r}: {fault.problem}"
        groups = self._index.groups_of(piece.split_rows(rows))
        found, which = np.unique(groups, return_inverse=True)
        codes = [self._lost.code_of(fault.kind, int(group), reason) for group in found]
        return np.array(codes, np.int32)[which]

    def _place(self, piece: Piece, row: int) -> tuple[str, int, int]:
        path, group, row = self._index.place(int(piece.split_rows(np.array([row]))[0]))
        return self._name_of(path), group, row

    def _void(self, lost_B: np.ndarray, ids: Ids) -> EncodedRows:
        """Rows that weigh nothing: row 0 of every table, empty lists, numbers and labels 0."""
        B, T = lost_B.size, len(self._targets.tasks)
        transforms = self._transforms
        ids = transforms.id_kind(ids)
        ragged = tuple(
            Ragged(
                np.zeros(0, ids),
                np.zeros(B + 1, np.int64),
                np.zeros(0, np.float32) if weighted else None,
            )
            for weighted in self._weighted
        )
        features = EncodedFeatures(
            np.zeros((len(transforms.single_features), B), ids),
            False,
            ragged,
            np.zeros((B, len(transforms.dense_names)), np.float32),
        )
        zeros_BT = np.zeros((B, T), np.float32)
        keys_BK = None if self._keys is None else np.zeros((B, len(self._keys.columns)), np.int64)
        return EncodedRows(features, zeros_BT, zeros_BT.copy(), lost_B, keys_BK)
