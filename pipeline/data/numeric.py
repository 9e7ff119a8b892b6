"""Encoders of number columns: a scaled value with its missing flag, and a quantile bucket."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.columns import as_values, chunks_of, numbers

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class NumericEncoder:
    """Numbers of one column → scaled float32, missing flag, bucket row.

    ``value = clip((t(x) - shift) · factor)`` with t the identity or sign(x)·log(1 + |x|). Null,
    NaN and infinite numbers are missing: value 0 (the train mean when standardised), flag 1,
    bucket row 0. Bucket row i ≥ 1 holds edges[i - 2] ≤ x < edges[i - 1].

    Attributes:
        name: column.
        type: Arrow type it is computed in, float32 or float64.
        value: whether the scaled value is a column of dense_NB.
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

    def encode(
        self,
        batch: pa.RecordBatch | pa.Table,
        dense_NB: np.ndarray,
        bucket_B: np.ndarray | None,
        counters: Counter[str],
    ) -> None:
        """Fills this feature's rows of dense_NB (value, then flag) and its bucket column."""
        start = 0
        for chunk in chunks_of(batch, self.name):
            x = numbers(as_values(chunk, self.type, self.name))
            span = slice(start, start + x.size)
            missing = self._missing(x, counters)
            if self.value:
                self._scale(x, missing, dense_NB[0, span])
            if self.flag and self.value:
                dense_NB[1, span] = 0.0 if missing is None else missing
            if bucket_B is not None:
                assert self.edges is not None
                rows = np.searchsorted(self.edges, x, side="right") + 1
                if missing is not None:
                    rows[missing] = 0
                bucket_B[span] = rows
            start += x.size

    def _missing(self, x: np.ndarray, counters: Counter[str]) -> np.ndarray | None:
        # One pass decides the common case: a sum is finite only if every term is.
        with np.errstate(over="ignore", invalid="ignore"):
            if not x.size or np.isfinite(np.add.reduce(x)):
                return None
        missing = ~np.isfinite(x)
        count = int(np.count_nonzero(missing))
        if not count:
            return None
        infinite = int(np.count_nonzero(np.isinf(x)))
        if infinite:
            counters[f"{self.name}/infinite"] += infinite
        counters[f"{self.name}/missing"] += count
        if self.value and not self.flag:
            counters[f"{self.name}/missing_without_flag"] += count
        return missing

    def _scale(self, x: np.ndarray, missing: np.ndarray | None, out: np.ndarray) -> None:
        if self.log1p:
            logs = np.abs(x)
            np.log1p(logs, out=logs)
            x = np.copysign(logs, x, out=logs)
        number = x.dtype.type
        if x.dtype == np.float32:
            np.subtract(x, number(self.shift), out=out)
            np.multiply(out, number(self.factor), out=out)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                # The limit keeps a huge double from becoming infinite in float32.
                out[:] = np.clip((x - self.shift) * self.factor, -_FLOAT32_MAX, _FLOAT32_MAX)
        if missing is not None:
            out[missing] = 0.0
        if self.clip is not None:
            np.clip(out, np.float32(-self.clip), np.float32(self.clip), out=out)
