"""Any CSV or Parquet files as a dataset, by a description instead of code."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.hashing import mix
from pipeline.data.manifest import SPLITS, DatasetError
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.convert import RowConverter
from pipeline.data.preparing.recipes.description import (
    CutSplit,
    RandomSplit,
    TableDescription,
    ValueSplit,
)
from pipeline.data.preparing.recipes.sources import (
    CsvFormat,
    RawRows,
    find_files,
    read_raw,
    source_columns,
)

# Row → position of its split in SPLITS, given the raw rows and the number of rows before them.
Assign = Callable[[RawRows, int], npt.NDArray[np.int8]]
Derive = Callable[[RawRows], pa.RecordBatch]


def table(source: str | Path, description: TableDescription) -> Recipe:
    """Files at `source` (file, folder, glob) as a recipe.

    Raises:
        DatasetError: nothing at `source`.
    """
    by_file = description.split.by_file
    if by_file is not None:
        folder = Path(source)
        files = {
            split: find_files(folder / pattern)
            for split in SPLITS
            if (pattern := getattr(by_file, split)) is not None
        }
        parts = [(paths, whole_file(split)) for split, paths in files.items()]
    else:
        parts = [(find_files(source), _assignment(description))]
    described = description.model_dump(mode="json", exclude_defaults=True)
    return files_recipe(description, parts, source={"recipe": "table", "description": described})


def files_recipe(
    description: TableDescription,
    parts: Sequence[tuple[Sequence[Path], Assign]],
    derive: Derive | None = None,
    derive_columns: Sequence[str] = (),
    derived: pa.Schema | None = None,
    source: dict[str, Any] | None = None,
) -> Recipe:
    """Files with a rule for the split of their rows, as a recipe.

    Args:
        description: columns and tasks; its `split` is the caller's business.
        parts: (files, rule) in reading order.
        derive: adds columns to the raw rows before the description is applied.
        derive_columns: source columns `derive` reads.
        derived: names and types of the columns it adds.
        source: how the rows are made, for the manifest, beside the file names.
    """
    layout = CsvFormat(
        description.separator, tuple(description.header) if description.header else None
    )
    schema = source_columns(parts[0][0][0], layout)
    added = derived if derived is not None else pa.schema([])
    converter = RowConverter(description, pa.schema([*schema, *added]))
    cut = description.split.by_cut or description.split.by_value
    needed = [n for n in converter.source_columns if n not in added.names]
    needed = list(dict.fromkeys([*needed, *derive_columns, *([cut.column] if cut else [])]))

    sizes = [file.stat().st_size for files, _ in parts for file in files]
    bytes_read = 0.0

    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        nonlocal bytes_read
        bytes_before = 0
        for files, assign in parts:
            rows_before = 0
            for file in files:
                size = file.stat().st_size
                for raw in read_raw(file, needed, layout):
                    splits = assign(raw, rows_before)
                    rows_before += raw.rows.num_rows
                    bytes_read = bytes_before + raw.share * size
                    if derive is not None:
                        raw = replace(raw, rows=derive(raw))
                    yield from _by_split(converter.convert(raw), splits)
                bytes_before += size

    return Recipe(
        name=description.name,
        columns=converter.columns,
        tasks=tuple(description.task_list),
        read=read,
        share=lambda: bytes_read / sum(sizes),
        sample_weight=description.sample_weight,
        source={**(source or {}), "files": [file.name for files, _ in parts for file in files]},
    )


def _by_split(
    rows: pa.RecordBatch, splits: npt.NDArray[np.int8]
) -> Iterator[tuple[str, pa.RecordBatch]]:
    for number, split in enumerate(SPLITS):
        chosen = splits == number
        if chosen.all():
            yield split, rows
        elif chosen.any():
            yield split, rows.filter(pa.array(chosen))


def whole_file(split: str) -> Assign:
    """Every row to the same split."""
    return lambda raw, _: np.full(raw.rows.num_rows, SPLITS.index(split), dtype=np.int8)


def _assignment(description: TableDescription) -> Assign:
    split = description.split
    if split.by_cut is not None:
        return by_cut(split.by_cut)
    if split.by_value is not None:
        return _by_value(split.by_value)
    assert split.random is not None
    return _by_hash(split.random)


def by_cut(cut: CutSplit) -> Assign:
    """Train before `valid_from`, test from `test_from` on; numbers by size, else text by order."""
    as_number = all(isinstance(v, int | float) for v in (cut.valid_from, cut.test_from))
    bounds = [v if as_number else str(v) for v in (cut.valid_from, cut.test_from)]

    def assign(raw: RawRows, _: int) -> npt.NDArray[np.int8]:
        try:
            values = raw.rows.column(cut.column).cast(pa.float64() if as_number else pa.string())
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{raw.file}: split column {cut.column!r}: {error}") from None
        _refuse(values.is_null(), values, cut.column, raw)
        past = [pc.greater_equal(values, bound).to_numpy(zero_copy_only=False) for bound in bounds]
        return np.where(past[1], 2, past[0]).astype(np.int8)

    return assign


def _by_value(rule: ValueSplit) -> Assign:
    names = [(value, SPLITS.index(s)) for s in SPLITS for value in getattr(rule, s)]
    known = pa.array([str(value) for value, _ in names])
    splits = np.array([split for _, split in names], dtype=np.int8)

    def assign(raw: RawRows, _: int) -> npt.NDArray[np.int8]:
        values = raw.rows.column(rule.column).cast(pa.string())
        found = pc.index_in(values, value_set=known)
        _refuse(found.is_null(), values, rule.column, raw)
        return splits[found.to_numpy()]

    return assign


def _by_hash(rule: RandomSplit) -> Assign:
    key = mix(np.array([rule.seed], dtype=np.uint64))[0]

    def assign(raw: RawRows, rows_before: int) -> npt.NDArray[np.int8]:
        positions = np.arange(rows_before, rows_before + raw.rows.num_rows, dtype=np.uint64)
        share = (mix(positions ^ key) >> np.uint64(11)) / float(1 << 53)
        return np.where(share < rule.test, 2, share < rule.test + rule.valid).astype(np.int8)

    return assign


def _refuse(wrong: pa.Array, values: pa.Array, column: str, raw: RawRows) -> None:
    row = pc.index(wrong, pa.scalar(True)).as_py()
    if row >= 0:
        raise DatasetError(
            f"{raw.file}: row {raw.first_row + row + 1}: split column {column!r} is "
            f"{values[row].as_py()!r}, which names no split"
        )
