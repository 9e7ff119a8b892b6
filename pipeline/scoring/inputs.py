"""The input: which files, how many rows they have, and whether the model can read them."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.locations import is_uri
from pipeline.config.scoring import ScoringConfig
from pipeline.data.faults import OutageError
from pipeline.data.remote import RemoteFile, RetryPolicy
from pipeline.data.shard_files import DECODE_ERRORS
from pipeline.data.storage import Store, StoredFile, open_store
from pipeline.registry.columns import RowError
from pipeline.registry.scorer import RowScorer
from pipeline.scoring.errors import ScoringError

_REQUESTS = 16
_SLICE_BUFFER = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """One Parquet file.

    Attributes:
        path: relative to the input's folder.
        size: bytes; modified: time of change in ns, 0 = unknown.
        group_rows: rows of each row group.
    """

    path: str
    size: int
    modified: int
    group_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


@dataclass(frozen=True)
class Inputs:
    """All input files, sorted by path, in one store."""

    store: Store
    files: tuple[InputFile, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Listing:
    """The files a location names.

    Attributes:
        store: of the folder they lie in; paths are relative to it.
        files: sorted by path.
        deep: whether files in folders that are made later would be among them.
    """

    store: Store
    files: list[StoredFile]
    deep: bool


def list_files(location: str) -> Listing:
    """The files that a location names: a file, a folder (all below it) or a pattern.

    Wildcards are those of ``Store.files``; in a URI a question mark begins its options instead.

    Raises:
        ScoringError: there are none.
        OSError: the store does not answer.
    """
    base, mark, options = location.partition("?") if is_uri(location) else (location, "", "")
    wild = min((base.find(c) for c in "*?" if c in base), default=-1)
    deep = wild < 0 or "**" in base
    if wild >= 0:
        folder = base[:wild].rpartition("/")[0]
        pattern = base[len(folder) :].lstrip("/")
        store = open_store((folder or _top(base)) + mark + options)
    else:
        pattern, store = "", open_store(location)
        if store.is_file():
            deep = False
            folder, _, pattern = base.rpartition("/")
            store = open_store((folder or _top(base)) + mark + options)
    files = store.files(pattern)
    if not files:
        raise ScoringError(
            f"--input: nothing is called {store.name_of(pattern)}, or the folder is empty; give a "
            "Parquet file, a folder of them, or a pattern such as 'logs/dt=2026-11-*/*.parquet'"
        )
    return Listing(store, files, deep)


def check_inputs(
    listing: Listing, scorer: RowScorer, config: ScoringConfig, retry: RetryPolicy
) -> Inputs:
    """Reads the footer of every file and makes sure that its rows can be scored.

    Raises:
        ScoringError: a file is damaged, lacks a column or has it in a type that does not convert.
        OutageError: the store does not answer.
    """

    store = listing.store

    def footer(file: StoredFile) -> tuple[InputFile, pa.Schema]:
        with open_parquet(store, file.path, retry) as opened:
            footer = opened.metadata
            rows = tuple(footer.row_group(g).num_rows for g in range(footer.num_row_groups))
            return InputFile(file.path, file.size, file.modified, rows), opened.schema_arrow

    with ThreadPoolExecutor(_REQUESTS) as pool:
        found = list(pool.map(footer, listing.files))
    sound: set[tuple[str, ...]] = set()
    for file, schema in found:
        _check_columns(schema, store.name_of(file.path), scorer, config, sound)
    return Inputs(store, tuple(file for file, _ in found))


def open_parquet(
    store: Store, path: str, retry: RetryPolicy, strings: Sequence[str] = (), huge: bool = False
) -> pq.ParquetFile:
    """An open file; of a remote store its reads are tried again.

    Args:
        strings: columns to decode as Arrow dictionaries.
        huge: its row groups are not to be held whole, even compressed: columns are fetched by the
            megabyte.

    Raises:
        ScoringError: it is no Parquet file, or a damaged one.
        OutageError: the store does not answer.
    """
    place = store.name_of(path)
    try:
        if store.is_local:
            source = store.open_input(path)
        else:
            remote = RemoteFile(lambda: store.open_input(path), place, retry, Counter())
            source = pa.PythonFile(remote, mode="r")
        return pq.ParquetFile(
            source,
            read_dictionary=list(strings),
            buffer_size=_SLICE_BUFFER if huge else 0,
            pre_buffer=not store.is_local and not huge,
            page_checksum_verification=True,
        )
    except OutageError:
        raise
    except DECODE_ERRORS as error:
        raise ScoringError(
            f"{place}: cannot be opened as Parquet ({error}); restore the file, or leave it out "
            "with a pattern in --input"
        ) from error


def score_columns(scorer: RowScorer, config: ScoringConfig) -> list[str]:
    """Names of the score columns, in the order of the scorer's tasks."""
    return [f"{config.prefix}{task}" for task in scorer.task_names]


def kept_columns(schema: pa.Schema, config: ScoringConfig) -> list[str]:
    """Columns of the input that go to the output, partition columns included."""
    kept = schema.names if config.keep is None else config.keep
    return list(dict.fromkeys([*kept, *config.partition_by]))


def _check_columns(
    schema: pa.Schema,
    place: str,
    scorer: RowScorer,
    config: ScoringConfig,
    sound: set[tuple[str, ...]],
) -> None:
    present = set(schema.names)
    for name in scorer.schema.names:
        if name not in present:
            raise ScoringError(
                f"{place}: has no column {name!r}, which the model reads; write it into the file "
                "(null where it is not known), or leave the file out with a pattern in --input"
            )
    for key, names in (("keep", config.keep or []), ("partition_by", config.partition_by)):
        for name in names:
            if name not in present:
                raise ScoringError(
                    f"{place}: has no column {name!r}, which scoring.{key} names; it has "
                    f"{', '.join(sorted(present))}"
                )
    for name in score_columns(scorer, config):
        if name in kept_columns(schema, config):
            raise ScoringError(
                f"{place}: has a column {name!r}, as a score is called; choose another "
                "scoring.prefix, or leave the column out of scoring.keep"
            )
    for name in config.partition_by:
        kind = schema.field(name).type
        if not _makes_folders(kind):
            raise ScoringError(
                f"{place}: column {name!r} of scoring.partition_by holds {kind}; folders can be "
                "made of text, whole numbers, booleans and dates"
            )
    types = tuple(str(schema.field(name).type) for name in scorer.schema.names)
    if types not in sound:
        _try_types(schema, place, scorer)
        sound.add(types)


def _try_types(schema: pa.Schema, place: str, scorer: RowScorer) -> None:
    """Scores a row of nulls in the file's types: those that never convert show before the job."""
    fields = [schema.field(name) for name in scorer.schema.names]
    nulls = [pa.nulls(1, field.type) for field in fields]
    try:
        scorer.score_table(pa.table(nulls, names=[field.name for field in fields]))
    except RowError as error:
        wanted = scorer.schema.field(error.field).type
        raise ScoringError(
            f"{place}: {error}; write the column as {wanted}, as it was in training"
        ) from None


def _makes_folders(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    return any(t(kind) for t in (*tests, pa.types.is_boolean, pa.types.is_date))


def _top(base: str) -> str:
    return "/" if base.startswith("/") else "."
