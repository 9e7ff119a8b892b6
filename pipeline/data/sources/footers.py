"""What the footers of Parquet files tell: row groups, column types, a fingerprint.

Of every file only its end is fetched, however large it is.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.columns import value_type
from pipeline.data.manifest import Column, DatasetError, Shard
from pipeline.data.sources.roles import NeededColumn
from pipeline.data.storage import Store, StoredFile

_REQUESTS = 32
# Enough for the footers of most files, and little to fetch for nothing.
_TAIL = 64 << 10
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Footer:
    """One file.

    Attributes:
        shard: path, rows of each row group, bytes, and as ``sha256`` that of size and footer.
        types: Arrow types of the needed columns it has, as text.
        nulls: nulls of each plain column it has, where the file counts them.
    """

    shard: Shard
    types: dict[str, str]
    nulls: dict[str, int]


def read_footers(
    store: Store, files: Sequence[StoredFile], needed: Sequence[NeededColumn]
) -> list[Footer]:
    """The footers of many files, fetched in parallel, in the order of the files.

    Raises:
        DatasetError: a file is no Parquet file.
        OSError: the store does not answer.
    """
    names = [column.name for column in needed]
    plain = {c.name for c in needed if c.role == "numeric" and not c.counted}
    with ThreadPoolExecutor(min(_REQUESTS, max(len(files), 1))) as pool:
        return list(pool.map(lambda file: _read(store, file, names, plain), files))


def agreed_columns(
    store: Store, footers: Sequence[Footer], needed: Sequence[NeededColumn], strict: bool
) -> tuple[Column, ...]:
    """The needed columns with their types.

    Integers of any width are alike, and so are floats; other columns do not matter.

    Raises:
        DatasetError: no file has a column, or with ``strict`` one of them lacks it or holds
            another type.
    """
    reference: dict[str, tuple[str, str]] = {}
    for footer in footers:
        for name, kind in footer.types.items():
            if kind != "null":
                reference.setdefault(name, (footer.shard.path, kind))
    for column in needed:
        if not any(column.name in footer.types for footer in footers):
            raise DatasetError(
                f"{store.name_of(footers[0].shard.path)}: has no column {column.name!r}, nor has "
                f"any other file; correct the name in the config ({_where(column)})"
            )
    for footer in footers if strict else ():
        for column in needed:
            _check(store, footer, column, *reference.get(column.name, (footer.shard.path, "null")))
    return tuple(
        Column(c.name, c.role, reference.get(c.name, ("", "null"))[1], c.weight_of) for c in needed
    )


def _check(store: Store, footer: Footer, column: NeededColumn, first: str, kind: str) -> None:
    """Compares a column with the file that has it first."""
    place, found = store.name_of(footer.shard.path), footer.types.get(column.name)
    if found is None:
        raise DatasetError(
            f"{place}: has no column {column.name!r}, which {store.name_of(first)} has; write it "
            "into every file (null where it is not known), leave the file out of data.splits, the "
            "column out of the config, or set data.faults.schema_drift"
        )
    if found != "null" and _family(found) != _family(kind):
        raise DatasetError(
            f"{place}: column {column.name!r} holds {found}, in {store.name_of(first)} it holds "
            f"{kind}; write it with one type everywhere, leave the file out of data.splits, or "
            "set data.faults.schema_drift"
        )


def _read(store: Store, file: StoredFile, names: list[str], plain: set[str]) -> Footer:
    place = store.name_of(file.path)
    size, content = _fetch(store, file.path, place)
    try:
        metadata = pq.read_metadata(pa.BufferReader(content))
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{place}: its footer cannot be read ({error}); restore the file or leave it out of "
            "data.splits"
        ) from error
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    digest = hashlib.sha256(size.to_bytes(8, "little") + content).hexdigest()
    return Footer(
        Shard(file.path, tuple(group.num_rows for group in groups), size, digest),
        {name: _plain_type(schema.field(name).type) for name in names if name in schema.names},
        _nulls(groups, plain & set(schema.names)),
    )


def _fetch(store: Store, path: str, place: str) -> tuple[int, bytes]:
    """Size of a file and its footer, from the metadata to the closing magic number."""
    with store.explaining(path), store.open_input(path) as source:
        size = int(source.size())
        tail = bytes(source.read_at(min(size, _TAIL), max(size - _TAIL, 0)))
        if size < 12 or tail[-4:] != _MAGIC:
            raise DatasetError(
                f"{place}: is no Parquet file, or cut short; restore it, or leave it out by "
                "writing a glob such as *.parquet under data.splits"
            )
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > size:
            raise DatasetError(f"{place}: its footer is damaged; restore the file")
        if length > len(tail):
            tail = bytes(source.read_at(length, size - length))
    return size, tail[-length:]


def _nulls(groups: list[pq.RowGroupMetaData], names: set[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    if not names:
        return counts
    for group in groups:
        for position in range(group.num_columns):
            chunk = group.column(position)
            if chunk.path_in_schema not in names:
                continue
            statistics = chunk.statistics
            known = statistics is not None and statistics.has_null_count
            # Not counted means not known to be none.
            nulls = statistics.null_count if known else group.num_rows
            counts[chunk.path_in_schema] = counts.get(chunk.path_in_schema, 0) + nulls
    return counts


def _plain_type(kind: pa.DataType) -> str:
    return str(kind.value_type) if pa.types.is_dictionary(kind) else str(kind)


def _family(text: str) -> tuple[bool, str]:
    kind = value_type(text)
    is_list = text.startswith(("list<", "large_list<"))
    if kind is None:
        return is_list, text
    return is_list, "float" if pa.types.is_floating(kind) else str(kind)


def _where(column: NeededColumn) -> str:
    return {
        "categorical": "features",
        "numeric": "features",
        "label": "tasks.*.label",
        "space": "tasks.*.space",
        "weight": "data.sample_weight or features.*.weights",
    }.get(column.role, column.role)
