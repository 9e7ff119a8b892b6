"""Encoders of number columns: scaled values with their missing flags, and quantile buckets.

Legend: B rows, N numeric columns of dense_BN, M number features.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.columns import as_values, column_of, matrix_of, numbers

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class NumericEncoder:
    """How the numbers of one column become a scaled value, a missing flag and a bucket row.

    ``value = clip((t(x) - shift) · factor)`` with t the identity or sign(x)·log(1 + |x|). Null,
    NaN and infinite numbers are missing: value 0 (the train mean when standardised), flag 1,
    bucket row 0. Bucket row i ≥ 1 holds edges[i - 2] ≤ x < edges[i - 1].

    Attributes:
        name: column.
        type: Arrow type it is computed in, float32 or float64.
        value: whether the scaled value is a column of dense_BN.
        flag: whether a missing flag follows it (train had missing values).
        log1p: whether t is the logarithm.
        shift, factor, clip: scaling; clip None = no limit.
        edges: float64, ascending, or None where there are no buckets.
    """

    name: str
    type: pa.DataType
    value: bool
    flag: bool
    log1p: bool
    shift: float
    factor: float
    clip: float | None
    edges: np.ndarray | None

    @property
    def dense_names(self) -> tuple[str, ...]:
        if not self.value:
            return ()
        return (self.name, f"{self.name}:missing") if self.flag else (self.name,)

    @property
    def bucket_rows(self) -> int:
        assert self.edges is not None
        return self.edges.size + 2

    def bucket_B(self, x_B: np.ndarray, missing_B: np.ndarray | None) -> np.ndarray:
        """int64 (B,) rows of the bucket table."""
        assert self.edges is not None
        bucket_B: np.ndarray = np.searchsorted(self._edges_as(x_B.dtype), x_B, side="right")
        bucket_B += 1
        if missing_B is not None:
            bucket_B[missing_B] = 0
        return bucket_B

    def _edges_as(self, kind: np.dtype) -> np.ndarray:
        assert self.edges is not None
        if kind == np.float64:
            return self.edges
        # The least float32 at or above an edge has the same float32 numbers at or above it.
        near = self.edges.astype(np.float32)
        return np.where(near < self.edges, np.nextafter(near, np.float32(np.inf)), near)


class NumericEncoders:
    """All number features at once; columns of one type go through each operation together."""

    def __init__(self, encoders: Sequence[NumericEncoder]) -> None:
        self.encoders = tuple(encoders)
        self.dense_names = tuple(name for e in self.encoders for name in e.dense_names)
        groups = []
        for kind in (pa.float32(), pa.float64()):
            members = [e for e in self.encoders if e.type == kind]
            if members:
                groups.append(_Group(members, kind, self.dense_names))
        self._groups = groups
        self._plain = _PlainScaling(self.encoders) if _PlainScaling.fits(self.encoders) else None

    def encode(
        self, batch: pa.RecordBatch, buckets: dict[str, np.ndarray], counters: Counter[str]
    ) -> np.ndarray:
        """float32 dense_BN; fills ``buckets[name]``, int32 (B,), of the features that have them."""
        if self._plain is not None:
            dense_BN = self._plain.scaled(batch)
            if dense_BN is not None:
                return dense_BN
        dense_NB = np.empty((len(self.dense_names), batch.num_rows), np.float32)
        for group in self._groups:
            group.fill(dense_NB, *group.scaled(batch, buckets, counters))
        return np.ascontiguousarray(dense_NB.T)


class _PlainScaling:
    """float32 columns that are only shifted, scaled and clipped: done row by row, in place.

    The constants of a row are repeated for a stretch of rows, so that one operation runs along
    many numbers instead of along N.
    """

    _STRETCH = 64

    def __init__(self, encoders: Sequence[NumericEncoder]) -> None:
        self._names = [e.name for e in encoders]
        self._shift = self._stretch([e.shift for e in encoders])
        self._factor = self._stretch([e.factor for e in encoders])
        self._clip = any(e.clip is not None for e in encoders)
        self._limit = self._stretch([_FLOAT32_MAX if e.clip is None else e.clip for e in encoders])

    @staticmethod
    def fits(encoders: Sequence[NumericEncoder]) -> bool:
        return bool(encoders) and all(
            e.type == pa.float32() and e.value and not e.flag and not e.log1p and e.edges is None
            for e in encoders
        )

    def scaled(self, batch: pa.RecordBatch) -> np.ndarray | None:
        """float32 dense_BN; None where a number is missing."""
        x_BN = matrix_of(batch, self._names, pa.float32(), row_major=True)
        if x_BN is None:
            return None
        rest = len(x_BN) % self._STRETCH
        stretches = x_BN[: len(x_BN) - rest].reshape(-1, self._STRETCH * len(self._names))
        for part in (stretches, x_BN[len(x_BN) - rest :]):
            if not self._finite(part):
                return None
            self._scale(part)
        return x_BN

    @staticmethod
    def _finite(x: np.ndarray) -> bool:
        # A sum is finite only if every term is.
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(np.add.reduce(x, axis=0)).all())

    def _stretch(self, constants_N: list[float]) -> np.ndarray:
        return np.tile(np.array(constants_N, np.float32), self._STRETCH)

    def _scale(self, x: np.ndarray) -> None:
        width = x.shape[1]
        x -= self._shift[:width]
        x *= self._factor[:width]
        if self._clip:
            np.clip(x, -self._limit[:width], self._limit[:width], out=x)


class _Group:
    """Number features of one type."""

    def __init__(
        self, encoders: Sequence[NumericEncoder], kind: pa.DataType, dense_names: tuple[str, ...]
    ) -> None:
        self._encoders = encoders
        self._kind = kind
        self._names = [e.name for e in encoders]
        number = np.float32 if pa.types.is_float32(kind) else np.float64
        self._shift_M1 = np.array([[e.shift] for e in encoders], number)
        self._factor_M1 = np.array([[e.factor] for e in encoders], number)
        limit = [[_FLOAT32_MAX if e.clip is None else e.clip] for e in encoders]
        self._highest_M1 = np.array(limit, number)
        self._lowest_M1 = np.negative(self._highest_M1)
        # A clip, and for doubles the range of float32, which they must not leave.
        self._limited = number is np.float64 or any(e.clip is not None for e in encoders)
        self._logs = [m for m, e in enumerate(encoders) if e.log1p]
        place = {name: position for position, name in enumerate(dense_names)}
        self._values = [(m, place[e.name]) for m, e in enumerate(encoders) if e.value]
        self._flags = [
            (m, place[f"{e.name}:missing"]) for m, e in enumerate(encoders) if e.flag and e.value
        ]
        self._buckets = [m for m, e in enumerate(encoders) if e.edges is not None]

    def scaled(
        self, batch: pa.RecordBatch, buckets: dict[str, np.ndarray], counters: Counter[str]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Scaled numbers x_MB and the mask missing_MB (None = none are); fills the buckets."""
        x_MB = self._matrix(batch)
        missing_MB = self._missing(x_MB, counters)
        for m in self._buckets:
            encoder = self._encoders[m]
            missing_B = None if missing_MB is None else missing_MB[m]
            buckets[encoder.name][:] = encoder.bucket_B(x_MB[m], missing_B)
        self._scale(x_MB, missing_MB)
        return x_MB, missing_MB

    def fill(self, dense_NB: np.ndarray, x_MB: np.ndarray, missing_MB: np.ndarray | None) -> None:
        """Writes this group's rows of dense_NB."""
        for m, place in self._values:
            dense_NB[place] = x_MB[m]
        for m, place in self._flags:
            dense_NB[place] = 0.0 if missing_MB is None else missing_MB[m]

    def _matrix(self, batch: pa.RecordBatch) -> np.ndarray:
        x_MB = matrix_of(batch, self._names, self._kind)
        if x_MB is None:
            columns = [
                numbers(as_values(column_of(batch, name), self._kind, name)) for name in self._names
            ]
            x_MB = np.stack(columns)
        return x_MB

    def _missing(self, x_MB: np.ndarray, counters: Counter[str]) -> np.ndarray | None:
        # One pass decides the common case: a sum is finite only if every term is.
        with np.errstate(over="ignore", invalid="ignore"):
            finite_M = np.isfinite(np.add.reduce(x_MB, axis=1))
        if finite_M.all():
            return None
        missing_MB = ~np.isfinite(x_MB)
        for m in np.flatnonzero(~finite_M).tolist():
            encoder, count = self._encoders[m], int(np.count_nonzero(missing_MB[m]))
            infinite = int(np.count_nonzero(np.isinf(x_MB[m])))
            if count:
                counters[f"{encoder.name}/missing"] += count
            if infinite:
                counters[f"{encoder.name}/infinite"] += infinite
            if count and encoder.value and not encoder.flag:
                counters[f"{encoder.name}/missing_without_flag"] += count
        return missing_MB

    def _scale(self, x_MB: np.ndarray, missing_MB: np.ndarray | None) -> None:
        """In place."""
        for m in self._logs:
            sign_B = np.sign(x_MB[m])
            np.abs(x_MB[m], out=x_MB[m])
            np.log1p(x_MB[m], out=x_MB[m])
            x_MB[m] *= sign_B
        with np.errstate(over="ignore", invalid="ignore"):
            x_MB -= self._shift_M1
            x_MB *= self._factor_M1
        if self._limited:
            np.clip(x_MB, self._lowest_M1, self._highest_M1, out=x_MB)
        if missing_MB is not None:
            x_MB[missing_MB] = 0.0
