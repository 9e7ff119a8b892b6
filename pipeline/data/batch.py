"""The batch of the training loop, and how it is put together from pieces of encoded rows.

Legend: B rows of a worker's batch, N numeric columns, T tasks, F single-valued features, K key
columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from pipeline.data.encoded import EncodedRows
from pipeline.data.transforms import FeatureTransforms


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch.

    Attributes:
        ids: unweighted features, keys in config order; None where there are none.
        weighted_ids: weighted features, likewise.
        dense_BN: float32 numeric columns.
        labels_BT: float32.
        weights_BT: float32; sample weight where the row is in the task's space, else 0. Padding
            rows have 0 everywhere.
        rows: usable rows (the others are void, or padding at the end of each stream's share).
        cursor: where the epoch goes on after this batch; see ``BatchLoader.load_state_dict``.
        keys_BK: int64 key columns (``pipeline.data.keys``), for evaluation; None without any.
    """

    ids: KeyedJaggedTensor | None
    weighted_ids: KeyedJaggedTensor | None
    dense_BN: torch.Tensor
    labels_BT: torch.Tensor
    weights_BT: torch.Tensor
    rows: int
    cursor: dict[str, Any]
    keys_BK: torch.Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        device = torch.device(device)
        return replace(
            self,
            ids=self.ids and self.ids.to(device, non_blocking=non_blocking),
            weighted_ids=self.weighted_ids
            and self.weighted_ids.to(device, non_blocking=non_blocking),
            dense_BN=self.dense_BN.to(device, non_blocking=non_blocking),
            labels_BT=self.labels_BT.to(device, non_blocking=non_blocking),
            weights_BT=self.weights_BT.to(device, non_blocking=non_blocking),
            keys_BK=None
            if self.keys_BK is None
            else self.keys_BK.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        return replace(
            self,
            ids=self.ids and self.ids.pin_memory(),
            weighted_ids=self.weighted_ids and self.weighted_ids.pin_memory(),
            dense_BN=self.dense_BN.pin_memory(),
            labels_BT=self.labels_BT.pin_memory(),
            weights_BT=self.weights_BT.pin_memory(),
            keys_BK=None if self.keys_BK is None else self.keys_BK.pin_memory(),
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for part in (
            self.ids,
            self.weighted_ids,
            self.dense_BN,
            self.labels_BT,
            self.weights_BT,
            self.keys_BK,
        ):
            if part is not None:
                part.record_stream(stream)


@dataclass(frozen=True)
class Segment:
    """Rows start … stop-1 of an encoded piece; they become rows ``at`` … of the batch."""

    rows: EncodedRows
    start: int
    stop: int
    at: int


@dataclass(frozen=True)
class _Run:
    """Neighbouring keys of a KJT that lie next to each other in ids_FB: one copy moves them all.

    A multi-valued feature is a run of its own, ``ragged`` being its position.
    """

    first: int
    stop: int
    ragged: int | None


class Collator:
    """Puts segments together into a batch of fixed size ``batch_rows``.

    Rows that no segment fills are padding: row 0 (or an empty bag) of every table, numbers,
    labels and weights 0.
    """

    def __init__(
        self, transforms: FeatureTransforms, tasks: int, batch_rows: int, key_columns: int = 0
    ) -> None:
        self.batch_rows = batch_rows
        self._tasks = tasks
        self._key_columns = key_columns
        self._dense = len(transforms.dense_names)
        weighted = {table.feature for table in transforms.tables if table.weighted}
        names = [table.feature for table in transforms.tables]
        self._unweighted = _KeyedLayout(
            [name for name in names if name not in weighted], transforms, batch_rows, False
        )
        self._weighted = _KeyedLayout(
            [name for name in names if name in weighted], transforms, batch_rows, True
        )

    def __call__(self, segments: Sequence[Segment], cursor: dict[str, Any]) -> Batch:
        filled = sum(segment.stop - segment.start for segment in segments)
        full = filled == self.batch_rows
        if full and len(segments) == 1 and segments[0].rows.rows == filled:
            # A batch by themselves: nothing to put together.
            whole = segments[0].rows
            dense_BN, labels_BT = whole.features.dense_BN, whole.labels_BT
            weights_BT = whole.weights_BT
        else:
            dense_BN, labels_BT, weights_BT = self._numbers(segments, full)
        return Batch(
            ids=self._unweighted.build(segments, full),
            weighted_ids=self._weighted.build(segments, full),
            dense_BN=torch.from_numpy(dense_BN),
            labels_BT=torch.from_numpy(labels_BT),
            weights_BT=torch.from_numpy(weights_BT),
            rows=filled - sum(map(_void_rows, segments)),
            cursor=cursor,
            keys_BK=self._keys(segments),
        )

    def _numbers(
        self, segments: Sequence[Segment], full: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        B, N, T = self.batch_rows, self._dense, self._tasks
        dense_BN = _new((B, N), np.float32, full)
        labels_BT = _new((B, T), np.float32, full)
        weights_BT = _new((B, T), np.float32, full)
        for segment in segments:
            source = slice(segment.start, segment.stop)
            span = slice(segment.at, segment.at + segment.stop - segment.start)
            dense_BN[span] = segment.rows.features.dense_BN[source]
            labels_BT[span] = segment.rows.labels_BT[source]
            weights_BT[span] = segment.rows.weights_BT[source]
        return dense_BN, labels_BT, weights_BT

    def _keys(self, segments: Sequence[Segment]) -> torch.Tensor | None:
        """The key columns, if rows carry any; padding has key 0."""
        if not self._key_columns:
            return None
        keys_BK = np.zeros((self.batch_rows, self._key_columns), np.int64)
        for segment in segments:
            part_BK = segment.rows.keys_BK
            assert part_BK is not None, "rows without keys"
            stop = segment.at + segment.stop - segment.start
            keys_BK[segment.at : stop] = part_BK[segment.start : segment.stop]
        return torch.from_numpy(keys_BK)


def _void_rows(segment: Segment) -> int:
    lost_B = segment.rows.lost_B
    return 0 if lost_B is None else int(np.count_nonzero(lost_B[segment.start : segment.stop]))


class _KeyedLayout:
    """Builds one KeyedJaggedTensor: values by key, then by row."""

    def __init__(
        self, keys: list[str], transforms: FeatureTransforms, batch_rows: int, weighted: bool
    ) -> None:
        self.keys = keys
        self._B = batch_rows
        self._is_weighted = weighted
        self._runs = _runs(keys, transforms)
        self._all_single = all(run.ragged is None for run in self._runs)
        F, B = len(keys), batch_rows
        # Where every list has one item, lengths and offsets never change: built once, shared.
        self._ones = torch.ones(F * B, dtype=torch.int64)
        self._offsets = torch.arange(F * B + 1, dtype=torch.int64)

    def build(self, segments: Sequence[Segment], full: bool) -> KeyedJaggedTensor | None:
        if not self.keys:
            return None
        absent = any(segment.rows.features.has_absent for segment in segments)
        if self._all_single and not absent:
            return self._build_single(segments, full)
        return self._build_ragged(segments, full, absent)

    def _build_single(self, segments: Sequence[Segment], full: bool) -> KeyedJaggedTensor:
        F, B = len(self.keys), self._B
        whole_FB = segments[0].rows.features.ids_FB if full and len(segments) == 1 else None
        if whole_FB is not None and whole_FB.shape == (F, B) and whole_FB.dtype == np.int64:
            values_FB = whole_FB
        else:
            values_FB = _new((F, B), np.int64, full)
            row = 0
            for run in self._runs:
                count = run.stop - run.first
                self._fill_run(values_FB[row : row + count], run, segments)
                row += count
        return KeyedJaggedTensor(
            keys=self.keys,
            values=torch.from_numpy(values_FB.reshape(-1)),
            lengths=self._ones,
            offsets=self._offsets,
            stride=B,
            length_per_key=[B] * F,
            offset_per_key=list(range(0, F * B + 1, B)),
        )

    def _build_ragged(
        self, segments: Sequence[Segment], full: bool, absent: bool
    ) -> KeyedJaggedTensor:
        F, B = len(self.keys), self._B
        lengths_FB = np.ones((F, B), np.int64)
        parts: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        length_per_key: list[int] = []
        # Keys of a map need int64; rows of a table make do with int32, half the memory.
        wide = any(segment.rows.features.ids_FB.dtype == np.int64 for segment in segments)
        row = 0
        for run in self._runs:
            count = run.stop - run.first
            if run.ragged is not None:
                self._add_ragged(run.ragged, segments, lengths_FB[row], parts, weights)
                length_per_key.append(int(lengths_FB[row].sum()))
            else:
                values_FB = _new((count, B), np.int64 if wide else np.int32, full)
                self._fill_run(values_FB, run, segments)
                if absent:
                    present = values_FB >= 0
                    np.copyto(lengths_FB[row : row + count], present)
                    length_per_key += present.sum(axis=1).tolist()
                    parts.append(values_FB[present])
                else:
                    length_per_key += [B] * count
                    parts.append(values_FB.reshape(-1))
            row += count
        offset_per_key = [0]
        for length in length_per_key:
            offset_per_key.append(offset_per_key[-1] + length)
        return KeyedJaggedTensor(
            keys=self.keys,
            values=torch.from_numpy(np.concatenate(parts, dtype=np.int64)),
            weights=torch.from_numpy(np.concatenate(weights)) if self._is_weighted else None,
            lengths=torch.from_numpy(lengths_FB.reshape(-1)),
            stride=B,
            length_per_key=length_per_key,
            offset_per_key=offset_per_key,
        )

    @staticmethod
    def _fill_run(values_FB: np.ndarray, run: _Run, segments: Sequence[Segment]) -> None:
        for segment in segments:
            stop = segment.at + segment.stop - segment.start
            source = segment.rows.features.ids_FB[
                run.first : run.stop, segment.start : segment.stop
            ]
            values_FB[:, segment.at : stop] = source

    @staticmethod
    def _add_ragged(
        feature: int,
        segments: Sequence[Segment],
        lengths_B: np.ndarray,
        parts: list[np.ndarray],
        weights: list[np.ndarray],
    ) -> None:
        lengths_B[:] = 0
        for segment in segments:
            ragged = segment.rows.features.ragged[feature]
            offsets = ragged.offsets_B1[segment.start : segment.stop + 1]
            stop = segment.at + segment.stop - segment.start
            np.subtract(offsets[1:], offsets[:-1], out=lengths_B[segment.at : stop])
            parts.append(ragged.values[offsets[0] : offsets[-1]])
            if ragged.weights is not None:
                weights.append(ragged.weights[offsets[0] : offsets[-1]])


def _new(shape: tuple[int, ...], kind: type, full: bool) -> np.ndarray:
    return np.empty(shape, kind) if full else np.zeros(shape, kind)


def _runs(keys: list[str], transforms: FeatureTransforms) -> list[_Run]:
    single = {name: position for position, name in enumerate(transforms.single_features)}
    ragged = {name: position for position, name in enumerate(transforms.list_features)}
    runs: list[_Run] = []
    for key in keys:
        if key in ragged:
            runs.append(_Run(0, 1, ragged[key]))
            continue
        position = single[key]
        if runs and runs[-1].ragged is None and runs[-1].stop == position:
            runs[-1] = _Run(runs[-1].first, position + 1, None)
        else:
            runs.append(_Run(position, position + 1, None))
    return runs
