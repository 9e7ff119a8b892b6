"""Raw rows with their labels as a stream, by day where the data has days.

What cannot be read ends the job, or is skipped and counted where ``data.faults`` allows it.

B rows of a batch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backtest.days import day_numbers, day_text
from pipeline.backtest.raw_files import check_columns, check_size, open_parquet, read_group
from pipeline.backtest.skipped_rows import SkippedRows
from pipeline.config import Experiment
from pipeline.config.faults import FaultsConfig
from pipeline.config.rows import JudgedRowsSection
from pipeline.config.splits import SplitConfig
from pipeline.data.faults import BadColumnError, ShardError
from pipeline.data.manifest import DatasetError, load_manifest
from pipeline.data.sources.listing import list_days
from pipeline.data.storage import Store, open_store

ALL = "all rows"


@dataclass(frozen=True)
class _Part:
    """A row group with its rows of the period, or a file of which nothing else is known yet."""

    path: str
    group: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class RawBatch:
    """B rows as they are in a file.

    Attributes:
        rows: the columns asked for.
        file: the file, as messages call it.
        group: number of the row group.
        numbers_B: int64, the rows' numbers in the row group.
    """

    rows: pa.RecordBatch
    file: str
    group: int
    numbers_B: np.ndarray

    @property
    def place(self) -> str:
        return f"{self.file}: row group {self.group}"

    def without(self, rows: np.ndarray) -> "RawBatch":
        """All but these rows."""
        kept = np.delete(np.arange(len(self.numbers_B)), rows)
        return replace(self, rows=self.rows.take(pa.array(kept)), numbers_B=self.numbers_B[kept])


@dataclass(frozen=True)
class RawRows:
    """Where rows are.

    Attributes:
        store: of the files.
        parts: by period: a day as YYYY-MM-DD, or ALL.
        name: what they are called: a split, or a key of the config.
        faults: what may be skipped, and how patiently a remote store is read.
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

    def batches(
        self,
        columns: Sequence[str],
        period: str | None = None,
        skipped: SkippedRows | None = None,
    ) -> Iterator[RawBatch]:
        """The rows of a period, or all, in the order of the files.

        Args:
            columns: to read.
            period: one of :attr:`periods`; None = all.
            skipped: the account of rows that cannot be used; None = one that nobody sees.

        Raises:
            DatasetError: a file cannot be read, or lacks a column, and may not be skipped; or a
                period lost too many rows.
        """
        names = list(dict.fromkeys(columns))
        skipped = SkippedRows(self.name, self.faults) if skipped is None else skipped
        for label in self.periods if period is None else [period]:
            skipped.begin()
            for path, parts in groupby(self.parts[label], key=lambda part: part.path):
                yield from self._file(path, list(parts), names, label, skipped)
            skipped.check(label)

    def _file(
        self, path: str, parts: list[_Part], names: list[str], label: str, skipped: SkippedRows
    ) -> Iterator[RawBatch]:
        try:
            file = open_parquet(self.store, path, self.faults)
        except ShardError as fault:
            if parts[0].rows is None:
                raise  # how many rows it has, nobody knows
            for part in parts:
                self._skip(fault, part, part.rows or 0, skipped)
            return
        with file:
            known = parts if parts[0].rows is not None else _groups_of(file, path)
            for part in known:
                assert part.rows is not None
                given = 0
                try:
                    if self.day_column is None:
                        check_size(file, part.group, part.rows, self.store.name_of(path))
                    for batch in self._group(file, part, names, label):
                        given += batch.rows.num_rows
                        skipped.rows += batch.rows.num_rows
                        yield batch
                except ShardError as fault:
                    self._skip(fault, part, part.rows - given, skipped)

    def _skip(self, fault: ShardError, part: _Part, rows: int, skipped: SkippedRows) -> None:
        skipped.rows += rows
        skipped.skip(fault, self.store.name_of(part.path), part.group, rows)

    def _group(
        self, file: pq.ParquetFile, part: _Part, names: list[str], label: str
    ) -> Iterator[RawBatch]:
        place, picked, first = self.store.name_of(part.path), self.day_column, 0
        read = names if picked is None else list(dict.fromkeys([*names, picked]))
        check_columns(file, read, place)
        for batch in read_group(file, part.group, read, place):
            numbers_B = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            if picked is not None:
                days = day_numbers(batch.column(picked), picked)
                of_day = pc.equal(days, day_numbers(pa.array([label]), picked)[0])
                batch = batch.filter(of_day)
                numbers_B = numbers_B[of_day.to_numpy(zero_copy_only=False)]
            if batch.num_rows:
                yield RawBatch(batch.select(names), place, part.group, numbers_B)


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
        parts = {
            ALL: tuple(
                _Part(shard.path, group, rows)
                for shard in shards
                for group, rows in enumerate(shard.row_groups)
                if rows
            )
        }
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
    for path in dict.fromkeys(part.path for listed in rows.parts.values() for part in listed):
        place = rows.store.name_of(path)
        with open_parquet(rows.store, path, rows.faults) as file:
            check_columns(file, [column], place)
            for group in range(file.num_row_groups):
                days: Counter[int] = Counter()
                for batch in read_group(file, group, [column], place):
                    try:
                        found = day_numbers(batch.column(column), column)
                    except BadColumnError as error:
                        raise DatasetError(f"{place}: row group {group}, {error}") from None
                    for entry in found.value_counts().to_pylist():
                        days[entry["values"]] += entry["counts"]
                for day, count in days.items():
                    parts.setdefault(day_text(day), []).append(_Part(path, group, count))
        if len(parts) > max_days:
            raise DatasetError(
                f"{place}: column {column!r} has more than {max_days} distinct days; name another "
                f"column in {key}.day_column, or raise {key}.max_days"
            )
    if not parts:
        raise DatasetError(f"{key}: {rows.store.location} holds no rows there")
    return replace(rows, parts={day: tuple(parts[day]) for day in sorted(parts)}, day_column=column)


def _groups_of(file: pq.ParquetFile, path: str) -> list[_Part]:
    sizes = (file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))
    return [_Part(path, group, rows) for group, rows in enumerate(sizes)]
