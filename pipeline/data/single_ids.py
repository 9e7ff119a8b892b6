"""All single-valued id columns at once: integer columns are copied and checked together.

Legend: B rows, F single-valued features.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.columns import matrix_of
from pipeline.data.lookup import IdentityLookup


class SingleIdEncoders:
    """Encoders of columns that hold one id per row.

    Args:
        encoders: in the order of the rows of ids_FB.
        more_rows: rows of ids_FB left open after theirs.
    """

    def __init__(self, encoders: Sequence[CategoricalEncoder], more_rows: int) -> None:
        self.encoders = tuple(encoders)
        self._rows = len(self.encoders) + more_rows
        integers = [f for f, e in enumerate(self.encoders) if pa.types.is_integer(e.type)]
        self._integer_names = tuple(self.encoders[f].name for f in integers)
        self._only_integers = len(integers) == self._rows
        # Every row of the matrix of integer columns: its place in ids_FB, and for identity the
        # ids allowed (all, for others).
        self._place = {name: place for place, name in enumerate(self._integer_names)}
        lookups = [self.encoders[f].lookup for f in integers]
        self._identity = np.array([isinstance(k, IdentityLookup) for k in lookups], bool)
        self._limit = np.array([k.table_rows for k in lookups], np.uint64)

    def encode(self, batch: pa.RecordBatch, counters: Counter[str]) -> tuple[np.ndarray, bool]:
        """int64 ids_FB, the last ``more_rows`` rows unset, and whether any id is absent."""
        keys_FB = matrix_of(batch, self._integer_names, pa.int64())
        if keys_FB is None:
            ids_FB = np.empty((self._rows, batch.num_rows), np.int64)
            absent = [
                encoder.encode_single(batch, ids_B, counters)
                for encoder, ids_B in zip(self.encoders, ids_FB, strict=False)
            ]
            return ids_FB, any(absent)
        checked = self._within_limits(keys_FB)
        if self._only_integers:
            # Looked up in place: what Arrow copied becomes the result.
            for place, encoder in enumerate(self.encoders):
                if not checked[place]:
                    encoder.encode_keys(keys_FB[place], keys_FB[place], counters)
            return keys_FB, False
        ids_FB = np.empty((self._rows, batch.num_rows), np.int64)
        has_absent = False
        for encoder, ids_B in zip(self.encoders, ids_FB, strict=False):
            place = self._place.get(encoder.name, -1)
            if place < 0:
                has_absent |= encoder.encode_single(batch, ids_B, counters)
            elif checked[place]:
                ids_B[:] = keys_FB[place]
            else:
                encoder.encode_keys(keys_FB[place], ids_B, counters)
        return ids_FB, has_absent

    def _within_limits(self, keys_FB: np.ndarray) -> list[bool]:
        """Which rows are identity ids that need nothing more: all are rows of their table."""
        if not keys_FB.size or not self._identity.any():
            return [False] * len(self._identity)
        # Negative ids are huge when read as unsigned.
        highest_F = keys_FB.view(np.uint64).max(axis=1)
        within: list[bool] = (self._identity & (highest_F < self._limit)).tolist()
        return within
