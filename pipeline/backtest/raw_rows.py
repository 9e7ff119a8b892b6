"""Raw rows with their labels as a stream, by day where the data has days.

Every row is read or the job stops: versions are not compared on rows that happened to be readable.

B rows of a batch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backtest.days import day_numbers, day_text
from pipeline.config import Experiment
from pipeline.config.faults import FaultsConfig
from pipeline.config.rows import JudgedRowsSection
from pipeline.config.splits import SplitConfig
from pipeline.data.faults import BadColumnError, OutageError
from pipeline.data.manifest import DatasetError, load_manifest
from pipeline.data.remote import RemoteFile, RetryPolicy
from pipeline.data.sources.listing import list_days
from pipeline.data.storage import Store, open_store

ALL = "all rows"
_ROWS = 32_768


@dataclass(frozen=True)
class _Part:
    """A file, or one row group of it where rows of a day are picked by a column."""

    path: str
    group: int | None = None


@dataclass(frozen=True)
class RawBatch:
    """B rows as they are in a file.

    Attributes:
        rows: the columns asked for.
        place: the file and row group, for messages.
        first: position of the first row in the row group.
    """

    rows: pa.RecordBatch
    place: str
    first: int

    def fault(self, error: Exception, row: int, remedy: str) -> DatasetError:
        """What is wrong with a row, with the place it is at."""
        return DatasetError(f"{self.place}, row {self.first + row}: {error}; {remedy}")


@dataclass(frozen=True)
class RawRows:
    """Where rows are.

    Attributes:
        store: of the files.
        parts: by period: a day as YYYY-MM-DD, or ALL.
        name: what they are called: a split, or a key of the config.
        faults: says how patiently a remote store is read.
        day_column: picks the rows of a day, where files hold several.
    """

    store: Store
    parts: dict[str, tuple[_Part, ...]]
    name: str
    faults: FaultsConfig
    day_column: str | None = None

    @property
    def periods(self) -> list[str]:
        return list(self.parts)

    @property
    def description(self) -> str:
        """Which rows these are, in words."""
        files = len({part.path for parts in self.parts.values() for part in parts})
        days = "" if self.periods == [ALL] else f", {self.periods[0]}"
        days += f" to {self.periods[-1]}" if len(self.parts) > 1 else ""
        return f"{self.name}{days}: {files:,} file{'s' * (files > 1)} in {self.store.location}"

    def batches(self, columns: Sequence[str], period: str | None = None) -> Iterator[RawBatch]:
        """The rows of a period, or all, in the order of the files.

        Raises:
            DatasetError: a file cannot be read, or lacks a column.
        """
        names = list(dict.fromkeys(columns))
        for label in self.periods if period is None else [period]:
            for path, parts in groupby(self.parts[label], key=lambda part: part.path):
                groups = [part.group for part in parts]
                yield from self._file(path, groups, names, label)

    def _file(
        self, path: str, groups: list[int | None], names: list[str], label: str
    ) -> Iterator[RawBatch]:
        place, picked = self.store.name_of(path), self.day_column
        read = names if picked is None else list(dict.fromkeys([*names, picked]))
        with open_parquet(self.store, path, self.faults) as file:
            check_columns(file, read, place)
            chosen = range(file.num_row_groups) if groups == [None] else groups
            for group in chosen:
                assert group is not None
                first = 0
                for batch in read_group(file, group, read, place):
                    rows, start = batch, first
                    first += batch.num_rows
                    if picked is not None:
                        days = day_numbers(batch.column(picked), picked)
                        rows = batch.filter(
                            pc.equal(days, day_numbers(pa.array([label]), picked)[0])
                        )
                    if rows.num_rows:
                        yield RawBatch(rows.select(names), f"{place}: row group {group}", start)


def open_rows(
    experiment: Experiment,
    section: JudgedRowsSection,
    key: str,
    day_column: str | None = None,
    max_days: int = 0,
) -> RawRows:
    """The rows a section of the experiment names.

    Args:
        experiment: with absolute paths; its ``data`` says where.
        section: ``promotion`` or ``backtest``.
        key: its name, for messages.
        day_column: column that says of which day a row is.
        max_days: more distinct days than this are refused.

    Raises:
        DatasetError: there are no such rows.
    """
    data = experiment.data
    found = _located(experiment, section, key)
    if found is None:
        manifest = load_manifest(data.path)
        shards = manifest.splits.get(section.split_name or "", ())
        if not sum(shard.rows for shard in shards):
            raise DatasetError(
                f"{key}.split: dataset {manifest.name!r} has no rows in {section.split_name}; "
                f"choose one of {', '.join(manifest.splits)}, or give {key}.rows"
            )
        parts = {ALL: tuple(_Part(shard.path) for shard in shards if shard.rows)}
        name = f"{section.split_name} split of {manifest.name}"
        rows = RawRows(open_store(manifest.root or data.path), parts, name, data.faults)
    else:
        rows = found
    return rows if day_column is None else _by_day(rows, day_column, max_days, key)


def _located(experiment: Experiment, section: JudgedRowsSection, key: str) -> RawRows | None:
    """Rows that patterns name; None where a manifest lists them."""
    data, name = experiment.data, section.split_name
    split: SplitConfig
    if section.rows is not None:
        split, date_format, key = section.rows, section.rows.date_format, f"{key}.rows"
    elif data.splits is None:
        return None
    else:
        chosen = data.splits.by_name.get(name or "")
        if chosen is None:
            raise DatasetError(
                f"{key}.split: data.splits.{name} is not there; give its files, or {key}.rows"
            )
        split, date_format, key = chosen, data.date_format, f"data.splits.{name}"
    try:
        store, days = list_days(data.path, split, date_format, key)
    except OSError as error:
        raise DatasetError(f"{key}: {error}") from error
    parts = {
        ALL if day is None else day.isoformat(): tuple(_Part(file.path) for file in files)
        for day, files in days.items()
    }
    return RawRows(store, parts, key, data.faults)


def _by_day(rows: RawRows, column: str, max_days: int, key: str) -> RawRows:
    """The same rows by the value of a column, which alone is read for it."""
    parts: dict[str, list[_Part]] = {}
    for part in (part for listed in rows.parts.values() for part in listed):
        place = rows.store.name_of(part.path)
        with open_parquet(rows.store, part.path, rows.faults) as file:
            check_columns(file, [column], place)
            for group in range(file.num_row_groups):
                days: set[str] = set()
                for batch in read_group(file, group, [column], place):
                    try:
                        found = day_numbers(batch.column(column), column).unique()
                    except BadColumnError as error:
                        raise DatasetError(f"{place}: row group {group}, {error}") from None
                    days |= {day_text(number) for number in found.to_pylist()}
                for day in days:
                    parts.setdefault(day, []).append(_Part(part.path, group))
        if len(parts) > max_days:
            raise DatasetError(
                f"{place}: column {column!r} has more than {max_days} distinct days; name another "
                f"column in {key}.day_column, or raise {key}.max_days"
            )
    if not parts:
        raise DatasetError(f"{key}: {rows.store.location} holds no rows there")
    return replace(rows, parts={day: tuple(parts[day]) for day in sorted(parts)}, day_column=column)


def open_parquet(store: Store, path: str, faults: FaultsConfig) -> pq.ParquetFile:
    """An open file; of a remote store its reads are tried again. Raises DatasetError."""
    place = store.name_of(path)
    try:
        source = store.open_input(path)
        if not store.is_local:
            retry = RetryPolicy(faults.read_attempts, faults.read_timeout_seconds)
            remote = RemoteFile(lambda: store.open_input(path), place, retry, Counter())
            source = pa.PythonFile(remote, mode="r")
        return pq.ParquetFile(source, pre_buffer=not store.is_local)
    except OutageError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{place}: cannot be opened ({error}); restore the file") from error


def check_columns(file: pq.ParquetFile, names: Sequence[str], place: str) -> None:
    """Raises DatasetError if the file lacks one of these columns."""
    known = set(file.schema_arrow.names)
    for name in names:
        if name not in known:
            raise DatasetError(
                f"{place}: has no column {name!r}, which the versions or their labels need; judge "
                "on files that have it, or write it into this one (null where it is not known)"
            )


def read_group(
    file: pq.ParquetFile, group: int, names: Sequence[str], place: str
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group, some thousands at a time. Raises DatasetError."""
    try:
        yield from file.iter_batches(_ROWS, [group], list(names))
    except OutageError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{place}: row group {group} cannot be decoded ({error}); restore the file"
        ) from error
