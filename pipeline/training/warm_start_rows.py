"""Which row of a source's table each row of this model's table starts from.

Rows stand for ids, and both models' transforms say for which: rows of a vocabulary are matched by
its values, never by their numbers.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

import ple
from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.crosses import CrossEncoder
from pipeline.data.lookup import VocabularyLookup
from pipeline.data.numeric import NumericEncoder
from pipeline.data.transforms import FeatureTransforms, bucket_name
from pipeline.training.warm_start_parts import Renames

Encoder = CategoricalEncoder | CrossEncoder | NumericEncoder
# Rows of a vocabulary that hold no value: missing ids, and unknown ones.
_OWN_ROWS = 2


@dataclass(frozen=True)
class RowMap:
    """Source rows by row.

    Attributes:
        taken: rows that start from a source's row.
        source: the source row of each row, -1 = fresh; None = the first ``taken`` rows start from
            the rows of the same number.
        how: by what rows were matched, in words.
        left_out: rows of the source that nothing starts from.
    """

    taken: int
    source: np.ndarray | None
    how: str
    left_out: int

    def between(self, first: int, stop: int) -> np.ndarray:
        """int64, the source rows of the rows from ``first`` to before ``stop``."""
        if self.source is not None:
            return self.source[first:stop]
        rows = np.arange(first, stop, dtype=np.int64)
        rows[rows >= self.taken] = -1
        return rows


def encoders_of(transforms: FeatureTransforms) -> dict[str, Encoder]:
    """Encoders by the feature of their table."""
    encoders: dict[str, Encoder] = {e.name: e for e in transforms.categorical}
    encoders |= {e.name: e for e in transforms.crosses}
    return encoders | {bucket_name(e.name): e for e in transforms.numeric if e.edges is not None}


def row_map(
    here: Encoder,
    table: ple.FeatureTable,
    there: Encoder,
    source: ple.FeatureTable,
    renames: Renames,
) -> RowMap | str:
    """The rows' map from a source's table, or why there is none.

    Args:
        here, table: encoder and table of this model.
        there, source: those of the source.
        renames: what this model's columns are called in the source.
    """
    if isinstance(here, NumericEncoder) and isinstance(there, NumericEncoder):
        return _by_bucket(here, there)
    if isinstance(here, CrossEncoder) and isinstance(there, CrossEncoder):
        columns = tuple(renames.features.get(column, column) for column in here.columns)
        if columns != there.columns or here.types != there.types:
            return f"a cross of {_cross(there)} in the source, of {_cross(here)} here"
        return _hashed(table.rows, source.rows)
    if not isinstance(here, CategoricalEncoder) or not isinstance(there, CategoricalEncoder):
        return f"{_kind(there)} in the source, {_kind(here)} here"
    if here.kind != there.kind:
        return f"encoder {there.kind} in the source, {here.kind} here"
    if here.kind != "identity" and here.type != there.type:
        return f"ids of type {there.type} in the source, {here.type} here"
    if isinstance(here.lookup, VocabularyLookup) and isinstance(there.lookup, VocabularyLookup):
        return _by_value(here.lookup, there.lookup)
    if here.kind == "hash":
        return _hashed(table.rows, source.rows)
    if here.kind == "identity":
        taken = min(table.rows, source.rows)
        return RowMap(taken, None, "by number", source.rows - taken)
    return _mapped(table, source)


def _by_value(here: VocabularyLookup, there: VocabularyLookup) -> RowMap | str:
    found = pc.index_in(here.values, value_set=there.values)
    values = np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    known = int(np.count_nonzero(values >= 0))
    if not known and len(values) and len(there.values):
        return "its vocabulary has no value in common with the source's"
    values = np.where(values >= 0, values + _OWN_ROWS, -1)
    rows = np.concatenate([np.arange(_OWN_ROWS), values])
    return RowMap(known + _OWN_ROWS, rows, "by value", len(there.values) - known)


def _by_bucket(here: NumericEncoder, there: NumericEncoder) -> RowMap:
    """A bucket starts from the one that its middle lies in."""
    assert here.edges is not None
    assert there.edges is not None
    edges = here.edges
    if edges.size:
        low = np.nextafter(edges[0], -np.inf)
        points = np.concatenate([[low], (edges[:-1] + edges[1:]) / 2, [edges[-1]]])
    else:
        points = np.zeros(1)
    buckets = np.searchsorted(there.edges, points, side="right") + 1
    rows = np.concatenate([[0], buckets]).astype(np.int64)
    same = np.array_equal(edges, there.edges)
    how = "by bucket" if same else "by bucket, the edges of which moved"
    return RowMap(rows.size, rows, how, there.bucket_rows - np.unique(rows).size)


def _hashed(rows: int, source_rows: int) -> RowMap | str:
    if rows != source_rows:
        return (
            f"hashed to {source_rows:,} rows in the source and to {rows:,} here, so that no row "
            "keeps its ids"
        )
    return RowMap(rows, None, "by hash", 0)


def _mapped(table: ple.FeatureTable, source: ple.FeatureTable) -> RowMap | str:
    assert table.map is not None
    assert source.map is not None
    here, there = (table.rows, table.map.buckets), (source.rows, source.map.buckets)
    if here != there:
        return (
            f"a zero_collision map of {there[0]:,} rows in {there[1]} buckets in the source, of "
            f"{here[0]:,} rows in {here[1]} buckets here"
        )
    return RowMap(table.rows, None, "with its map of ids", 0)


def _kind(encoder: Encoder) -> str:
    if isinstance(encoder, CategoricalEncoder):
        return f"ids ({encoder.kind})"
    return "a cross" if isinstance(encoder, CrossEncoder) else "buckets of numbers"


def _cross(encoder: CrossEncoder) -> str:
    return " and ".join(f"{c} ({t})" for c, t in zip(encoder.columns, encoder.types, strict=True))
