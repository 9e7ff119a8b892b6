"""Feature transforms: raw columns → table rows and numbers, the same in training and serving.

A :class:`FeatureTransforms` is fitted on a prepared dataset (``fitting.fit_transforms``), saved
beside the model as JSON and Parquet, and encodes raw Arrow rows with the same code wherever it
runs.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.features import Eviction
from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.columns import matrix_of, one_batch
from pipeline.data.crosses import CrossEncoder, CrossEncoders
from pipeline.data.encoded import EncodedFeatures
from pipeline.data.lookup import HashLookup, IdentityLookup, KeyLookup, Lookup, VocabularyLookup
from pipeline.data.manifest import DatasetError
from pipeline.data.numeric import NumericEncoder, NumericEncoders
from pipeline.data.storage import Store, open_store

STATE_NAME = "transforms.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class IdMap:
    """How the map of a zero_collision feature lives; see ``ple.managed_ids``."""

    eviction: Eviction
    interval: int
    buckets: int


@dataclass(frozen=True)
class EmbeddingTable:
    """One embedding table the encoded ids index: its KJT key is ``feature``.

    With a ``map`` the ids are keys of 63 bits, which the model maps to the rows.
    """

    name: str
    feature: str
    rows: int
    dim: int
    pooling: str = "sum"
    weighted: bool = False
    map: IdMap | None = None


class FeatureTransforms:
    """Encoders of all features, in config order.

    Attributes:
        categorical: encoders of id columns; crosses: of pairs of them; numeric: of number columns.
        tables: one per categorical feature, one per cross, one per numeric feature with buckets.
        dense_names: the columns of dense_BN.
        columns: the raw columns needed.
        counters: what ``encode`` saw, by ``column/kind``: ``missing``, ``unknown_ids``,
            ``null_ids_dropped``, ``lists_truncated``, ``weights_not_finite``, ``infinite``,
            ``missing_without_flag``.
    """

    def __init__(
        self,
        categorical: tuple[CategoricalEncoder, ...],
        numeric: tuple[NumericEncoder, ...],
        tables: tuple[EmbeddingTable, ...],
        crosses: tuple[CrossEncoder, ...] = (),
    ) -> None:
        self.categorical = categorical
        self.crosses = crosses
        self.numeric = numeric
        self.tables = tables
        self._numbers = NumericEncoders(numeric)
        self.dense_names = self._numbers.dense_names
        weights = [encoder.weights for encoder in categorical if encoder.weights is not None]
        names = [encoder.name for encoder in categorical] + [encoder.name for encoder in numeric]
        self._crosses = CrossEncoders(crosses)
        self.columns = tuple(dict.fromkeys([*names, *weights, *self._crosses.columns]))
        self.counters: Counter[str] = Counter()
        self._lists = tuple(encoder for encoder in categorical if encoder.is_list)
        self._bucket_columns = tuple(e.name for e in numeric if e.edges is not None)
        self._single = tuple(encoder for encoder in categorical if not encoder.is_list)
        only_ids = not self._bucket_columns and not crosses
        self._integers = _integer_columns(self._single) if only_ids else None
        self._wide = any(isinstance(e.lookup, KeyLookup) for e in categorical)
        self._identity_limit = np.array(
            [e.lookup.table_rows if e.kind == "identity" else 0 for e in self._single], np.uint64
        )

    @property
    def single_features(self) -> tuple[str, ...]:
        """KJT keys of the rows of ids_FB: single-valued ids, crosses, buckets."""
        ids = [encoder.name for encoder in self._single] + [cross.name for cross in self.crosses]
        return tuple(ids) + tuple(map(bucket_name, self._bucket_columns))

    @property
    def list_features(self) -> tuple[str, ...]:
        """KJT keys of ``EncodedFeatures.ragged``."""
        return tuple(encoder.name for encoder in self._lists)

    @property
    def string_columns(self) -> tuple[str, ...]:
        """Columns best read as Arrow dictionaries: each distinct string is hashed once."""
        own = [e.name for e in self._single if not pa.types.is_integer(e.type)]
        return tuple(dict.fromkeys([*own, *self._crosses.string_columns]))

    def id_kind(self, wanted: type[np.signedinteger[Any]]) -> type[np.signedinteger[Any]]:
        """The integers ``encode`` makes where ``wanted`` are asked for."""
        return np.int64 if self._wide else wanted

    def encode(
        self,
        rows: pa.RecordBatch | pa.Table,
        counters: Counter[str] | None = None,
        ids: type[np.signedinteger[Any]] = np.int64,
    ) -> EncodedFeatures:
        """Encodes raw rows; other columns than :attr:`columns` are ignored.

        Args:
            rows: B rows, with columns of the fitted types or types that cast to them.
            counters: counts what is missing, unknown or dropped; absent = :attr:`counters`.
            ids: int64, or int32 where the encoded rows wait to be shuffled (which a zero_collision
                feature overrules: its keys need int64).

        Raises:
            DatasetError: a column is absent or does not convert, or a value cannot be used.
        """
        counters = self.counters if counters is None else counters
        ids = self.id_kind(ids)
        batch = one_batch(rows)
        ids_FB, has_absent = self._encode_single(batch, counters, ids)
        ragged = tuple(encoder.encode_lists(batch, counters, ids) for encoder in self._lists)
        first_bucket = len(self._single) + len(self.crosses)
        self._crosses.encode(batch, list(ids_FB[len(self._single) : first_bucket]), counters)
        buckets = dict(zip(self._bucket_columns, ids_FB[first_bucket:], strict=True))
        dense_BN = self._numbers.encode(batch, buckets, counters)
        return EncodedFeatures(ids_FB, has_absent, ragged, dense_BN)

    def _encode_single(
        self, batch: pa.RecordBatch, counters: Counter[str], ids: type[np.signedinteger[Any]]
    ) -> tuple[np.ndarray, bool]:
        """ids_FB, the rows of crosses and buckets still unset, and whether any id is absent."""
        if self._integers is not None and ids is np.int64:
            keys_FB = matrix_of(batch, self._integers, pa.int64())
            if keys_FB is not None:
                # One copy by Arrow for all columns, looked up in place.
                for encoder, keys_B, done in zip(
                    self._single, keys_FB, self._identity_rows(keys_FB), strict=True
                ):
                    if not done:
                        encoder.encode_keys(keys_B, keys_B, counters)
                return keys_FB, False
        ids_FB = np.empty((len(self.single_features), batch.num_rows), ids)
        absent = [
            encoder.encode_single(batch, ids_B, counters)
            for encoder, ids_B in zip(self._single, ids_FB, strict=False)
        ]
        return ids_FB, any(absent)

    def _identity_rows(self, keys_FB: np.ndarray) -> list[bool]:
        """Which columns need no more work: ids that are rows of their table as they are."""
        if not keys_FB.size:
            return [True] * len(keys_FB)
        # Negative ids are huge when read as unsigned; a limit of 0 stands for other encoders.
        done: list[bool] = (keys_FB.view(np.uint64).max(axis=1) < self._identity_limit).tolist()
        return done

    def save(self, folder: str | Path) -> None:
        """Writes ``transforms.json`` and ``vocabularies/*.parquet`` into ``folder``, a path or a
        URI. Raises OSError."""
        store = open_store(folder)
        categorical = []
        for position, encoder in enumerate(self.categorical):
            tree = {
                "name": encoder.name,
                "kind": encoder.kind,
                "type": str(encoder.type),
                "is_list": encoder.is_list,
                "weights": encoder.weights,
                "max_length": encoder.max_length,
                "table_rows": encoder.lookup.table_rows,
            }
            if isinstance(encoder.lookup, VocabularyLookup):
                # Numbered, because a column's name need not be a file name.
                name = f"vocabularies/{position:04d}.parquet"
                tree["vocabulary"] = name
                with store.open_output(name) as file:
                    pq.write_table(pa.table({"value": encoder.lookup.values}), file)
            categorical.append(tree)
        state = {
            "format_version": FORMAT_VERSION,
            "categorical": categorical,
            "crosses": [
                {**vars(encoder), "types": [str(kind) for kind in encoder.types]}
                for encoder in self.crosses
            ],
            "numeric": [_numeric_state(encoder) for encoder in self.numeric],
            "tables": [asdict(table) for table in self.tables],
        }
        store.write_text(STATE_NAME, json.dumps(state, indent=1) + "\n")

    @staticmethod
    def load(folder: str | Path) -> "FeatureTransforms":
        """Reads what :meth:`save` wrote. Raises DatasetError if it is not there or newer."""
        store = open_store(folder)
        path = store.name_of(STATE_NAME)
        try:
            state = json.loads(store.read_text(STATE_NAME))
        except (OSError, json.JSONDecodeError) as error:
            raise DatasetError(f"{path}: cannot read the feature transforms: {error}") from error
        if state.get("format_version") != FORMAT_VERSION:
            raise DatasetError(f"{path}: written by another version; register the model again")
        return FeatureTransforms(
            tuple(_load_categorical(tree, store) for tree in state["categorical"]),
            tuple(_load_numeric(tree) for tree in state["numeric"]),
            tuple(_load_table(tree) for tree in state["tables"]),
            tuple(_load_cross(tree) for tree in state["crosses"]),
        )


def bucket_name(column: str) -> str:
    """Table and KJT key of a numeric feature's buckets."""
    return f"{column}_bucket"


def _integer_columns(encoders: Sequence[CategoricalEncoder]) -> list[str] | None:
    """Their columns, if all of them hold integers."""
    if all(pa.types.is_integer(encoder.type) for encoder in encoders):
        return [encoder.name for encoder in encoders]
    return None


def _numeric_state(encoder: NumericEncoder) -> dict[str, Any]:
    edges = None if encoder.edges is None else encoder.edges.tolist()
    return {**vars(encoder), "type": str(encoder.type), "edges": edges}


def _load_categorical(tree: dict[str, Any], store: Store) -> CategoricalEncoder:
    lookup: Lookup
    if tree["kind"] == "vocabulary":
        with store.open_input(tree["vocabulary"]) as file:
            values = pq.read_table(file)["value"].combine_chunks()
        lookup = VocabularyLookup(values)
    else:
        lookup = _LOOKUPS[tree["kind"]](tree["table_rows"])
    return CategoricalEncoder(
        name=tree["name"],
        kind=tree["kind"],
        type=_TYPE_OF[tree["type"]],
        is_list=tree["is_list"],
        lookup=lookup,
        weights=tree["weights"],
        max_length=tree["max_length"],
    )


def _load_cross(tree: dict[str, Any]) -> CrossEncoder:
    first, second = tree["columns"]
    kinds = [_TYPE_OF[kind] for kind in tree["types"]]
    return CrossEncoder(tree["name"], (first, second), (kinds[0], kinds[1]), tree["table_rows"])


def _load_table(tree: dict[str, Any]) -> EmbeddingTable:
    map_ = tree["map"]
    return EmbeddingTable(**{**tree, "map": None if map_ is None else IdMap(**map_)})


def _load_numeric(tree: dict[str, Any]) -> NumericEncoder:
    edges = None if tree["edges"] is None else np.array(tree["edges"], np.float64)
    return NumericEncoder(**{**tree, "type": _TYPE_OF[tree["type"]], "edges": edges})


_TYPE_OF = {str(kind): kind for kind in (pa.int64(), pa.string(), pa.float32(), pa.float64())}
_LOOKUPS: dict[str, Callable[[int], Lookup]] = {
    "hash": HashLookup,
    "identity": IdentityLookup,
    "zero_collision": KeyLookup,
}
