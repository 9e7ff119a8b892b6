"""Encoders of number columns: a scaled value with its missing flag, and a quantile bucket."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.columns import as_values, column_of, numbers

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

    def encode(
        self,
        batch: pa.RecordBatch,
        dense_BN: np.ndarray,
        bucket_B: np.ndarray | None,
        counters: Counter[str],
    ) -> None:
        """Fills this feature's columns of dense_BN (value, then flag) and its bucket column."""
        x_B = numbers(as_values(column_of(batch, self.name), self.type, self.name))
        missing_B = self._missing(x_B, counters)
        if self.value:
            dense_BN[:, 0] = self._scaled(x_B, missing_B)
            if self.flag:
                dense_BN[:, 1] = 0.0 if missing_B is None else missing_B
        if bucket_B is not None:
            assert self.edges is not None
            np.add(np.searchsorted(self.edges, x_B, side="right"), 1, out=bucket_B)
            if missing_B is not None:
                bucket_B[missing_B] = 0

    def _missing(self, x_B: np.ndarray, counters: Counter[str]) -> np.ndarray | None:
        # One pass decides the common case: a sum is finite only if every term is.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.add.reduce(x_B)):
                return None
        missing_B = ~np.isfinite(x_B)
        count = int(np.count_nonzero(missing_B))
        if not count:
            return None
        infinite = int(np.count_nonzero(np.isinf(x_B)))
        if infinite:
            counters[f"{self.name}/infinite"] += infinite
        counters[f"{self.name}/missing"] += count
        if self.value and not self.flag:
            counters[f"{self.name}/missing_without_flag"] += count
        return missing_B

    def _scaled(self, x_B: np.ndarray, missing_B: np.ndarray | None) -> np.ndarray:
        if self.log1p:
            logs_B = np.abs(x_B)
            np.log1p(logs_B, out=logs_B)
            x_B = np.copysign(logs_B, x_B, out=logs_B)
        if x_B.dtype == np.float32:
            scaled_B = np.subtract(x_B, np.float32(self.shift))
            np.multiply(scaled_B, np.float32(self.factor), out=scaled_B)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                # The limit keeps a huge double from becoming infinite in float32.
                wide_B = np.clip((x_B - self.shift) * self.factor, -_FLOAT32_MAX, _FLOAT32_MAX)
                scaled_B = wide_B.astype(np.float32)
        if missing_B is not None:
            scaled_B[missing_B] = 0.0
        if self.clip is not None:
            np.clip(scaled_B, np.float32(-self.clip), np.float32(self.clip), out=scaled_B)
        return scaled_B
