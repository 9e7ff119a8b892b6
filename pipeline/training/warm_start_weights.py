"""The weights of a source, read a few rows at a time: a checkpoint's, or a registered version's.

Legend: R rows of a table, W their width.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

import ple
from pipeline.checkpoint.catalog import file_faults, read_marker
from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.index import INDEX, parse_index
from pipeline.checkpoint.marker import DamagedMarkerError
from pipeline.checkpoint.weights import AVERAGE, MODEL
from pipeline.data.storage import Store
from ple.serving_tables import bank_layouts, map_key

# Numbers are read about so many bytes at a time.
BLOCK_BYTES = 32 << 20
_SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


@dataclass(frozen=True)
class MapState:
    """A zero_collision map: the id and the row of each slot, sorted as training keeps them, and
    how often each id was seen, where that is known."""

    ids_R: Tensor
    rows_R: Tensor
    counts_R: Tensor | None


class SourceWeights(Protocol):
    """What a warm start reads."""

    def faults(self, share: int, shares: int) -> list[str]:
        """What is wrong with the files, or with one of several shares of them."""

    def dense(self, name: str) -> Tensor:
        """A weight outside of the tables."""

    def rows(self, table: ple.FeatureTable, first: int, stop: int) -> Tensor:
        """float32 (R, W), some rows of a table."""

    def map(self, table: ple.FeatureTable) -> MapState:
        """The map of a zero_collision table."""


class CheckpointWeights:
    """The weights of a checkpoint, the averaged ones where there are.

    Args:
        store: the checkpoint's folder.

    Raises:
        OSError: there is none.
        ValueError: its index is none.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        metadata = parse_index(store.read_text(INDEX))
        tensors = {}
        for name, saved in metadata.state_dict_metadata.items():
            assert isinstance(saved, TensorStorageMetadata), name
            parts = []
            for chunk in saved.chunks:
                piece = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
                parts.append(_Part(piece.file, piece.start, chunk.offsets, chunk.sizes))
            tensors[name] = _Saved(saved.properties.dtype, tuple(saved.size), tuple(parts))
        self._tensors = _Tensors(store, tensors)

    def faults(self, share: int, shares: int) -> list[str]:
        try:
            return file_faults(self._store, read_marker(self._store), share, shares)
        except DamagedMarkerError as error:
            return [f"its marker {error}"]

    def dense(self, name: str) -> Tensor:
        averaged = f"{AVERAGE}.{name}"
        return self._tensors.whole(averaged if averaged in self._tensors else f"{MODEL}.{name}")

    def rows(self, table: ple.FeatureTable, first: int, stop: int) -> Tensor:
        name = self._tensors.name(f"{MODEL}.embeddings.", f".embedding_bags.{table.name}.weight")
        return self._tensors.rows(name, first, stop).float()

    def map(self, table: ple.FeatureTable) -> MapState:
        place = f"._managed_collision_modules.{table.name}."

        def part(name: str) -> Tensor:
            return self._tensors.whole(self._tensors.name(f"{MODEL}.embeddings.", place + name))

        try:
            counts: Tensor | None = part("counts")
        except CheckpointError:
            counts = None  # its eviction rule keeps none
        return MapState(part("slot_ids"), part("slot_rows"), counts)


class VersionWeights:
    """The weights of a registered version; fp16 and int8 tables come as float32.

    Args:
        store, file: the version's weights (safetensors).
        tables: of its model.
        precision: of its tables.
    """

    def __init__(
        self, store: Store, file: str, tables: Sequence[ple.FeatureTable], precision: ple.Precision
    ) -> None:
        self._tensors = _Tensors(store, _safetensors(store, file))
        self._tables = tuple(tables)
        self._place: dict[str, tuple[str, int, ple.Precision]] = {}
        for number, layout in enumerate(bank_layouts(tables, precision)):
            first = 0
            for table in layout.tables.values():
                name = f"embeddings.banks.{number}.rows"
                self._place[table.name] = (name, first, layout.precision)
                first += table.rows

    def faults(self, share: int, shares: int) -> list[str]:
        return []  # the copy in the run folder was made whole

    def dense(self, name: str) -> Tensor:
        return self._tensors.whole(name)

    def rows(self, table: ple.FeatureTable, first: int, stop: int) -> Tensor:
        name, base, precision = self._place[table.name]
        stored = self._tensors.rows(name, base + first, base + stop)
        if precision == "int8":
            unpacked: Tensor = torch.ops.quantized.embedding_bag_byte_unpack(stored)
            return unpacked
        return stored.float()

    def map(self, table: ple.FeatureTable) -> MapState:
        assert table.map is not None
        place = f"embeddings.maps.{map_key(self._tables.index(table))}."
        ids_R, rows_R = self._tensors.whole(f"{place}ids"), self._tensors.whole(f"{place}rows")
        # Served in one order; trained bucket by bucket, each of which owns a share of the rows.
        order = torch.argsort(rows_R // (table.rows // table.map.buckets), stable=True)
        return MapState(ids_R[order], rows_R[order], None)


@dataclass(frozen=True)
class _Part:
    """Where a region of a tensor lies: row-major from a byte of a file on."""

    file: str
    start: int
    offsets: Sequence[int]
    sizes: Sequence[int]


@dataclass(frozen=True)
class _Saved:
    dtype: torch.dtype
    size: tuple[int, ...]
    parts: tuple[_Part, ...]


class _Tensors:
    """Raw tensors in files."""

    def __init__(self, store: Store, tensors: Mapping[str, _Saved]) -> None:
        self._store, self._tensors = store, tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def name(self, first: str, last: str) -> str:
        """The one name that begins and ends like this."""
        found = [n for n in self._tensors if n.startswith(first) and n.endswith(last)]
        if len(found) != 1:
            raise CheckpointError(f"{self._store.location}: no tensor {first}…{last}")
        return found[0]

    def whole(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self._store.location}: no tensor {name}")
        size = self._tensors[name].size
        rows = self.rows(name, 0, size[0] if size else 1)
        return rows if size else rows.reshape(())

    def rows(self, name: str, first: int, stop: int) -> Tensor:
        """The entries of the first axis from ``first`` to before ``stop``."""
        saved = self._tensors[name]
        size = saved.size or (1,)
        values = torch.empty((stop - first, *size[1:]), dtype=saved.dtype)
        for part in saved.parts:
            offsets, sizes = tuple(part.offsets) or (0,), tuple(part.sizes) or (1,)
            top, bottom = max(first, offsets[0]), min(stop, offsets[0] + sizes[0])
            if top >= bottom or not math.prod(sizes):
                continue
            row_bytes = math.prod(sizes[1:]) * saved.dtype.itemsize
            start = part.start + (top - offsets[0]) * row_bytes
            wanted = (bottom - top) * row_bytes
            with self._store.open_input(part.file) as file, self._store.explaining(part.file):
                data = bytearray(file.read_at(wanted, start))
            if len(data) != wanted:
                raise CheckpointError(f"{self._store.name_of(part.file)}: the file ended early")
            read = torch.frombuffer(data, dtype=saved.dtype).reshape(bottom - top, *sizes[1:])
            others = [slice(a, a + n) for a, n in zip(offsets[1:], sizes[1:], strict=True)]
            values[(slice(top - first, bottom - first), *others)] = read
        return values


def _safetensors(store: Store, file: str) -> dict[str, _Saved]:
    """What a safetensors file holds: eight bytes of length, a JSON header, the numbers."""
    with store.open_input(file) as source, store.explaining(file):
        length = int.from_bytes(source.read_at(8, 0), "little")
        header = json.loads(source.read_at(length, 8))
        size = int(source.size())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, stop = entry["data_offsets"]
        if 8 + length + stop > size:
            raise CheckpointError(f"{store.name_of(file)}: the file ended early")
        shape = tuple(entry["shape"])
        part = _Part(file, 8 + length + first, (0,) * len(shape), shape)
        tensors[name] = _Saved(_SAFETENSORS_TYPES[entry["dtype"]], shape, (part,))
    return tensors
