"""Ways in which a Parquet file goes wrong, done to real files."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def flip_footer(path: Path) -> None:
    """Every byte of the file's metadata is inverted."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    for place in range(len(content) - 8 - length, len(content) - 8):
        content[place] ^= 0xFF
    path.write_bytes(content)


def flip_page_header(path: Path, group: int, column: int = 0) -> None:
    """The first bytes of a column's first page in a row group are inverted."""
    start, _ = _chunk(path, group, column)
    _invert(path, range(start, start + 4))


def flip_data_page(path: Path, group: int, column: int = 0) -> None:
    """One byte of the values of a row group's column is inverted."""
    _, stop = _chunk(path, group, column)
    _invert(path, range(stop - 2, stop - 1))


def truncate(path: Path) -> None:
    """The second half of the file is lost."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Writes the file anew, with other rows or columns in the same row groups."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    table = change(file.read())
    with pq.ParquetWriter(path, table.schema, write_page_checksum=True) as writer:
        for number, rows in enumerate(sizes):
            part = table.slice(sum(sizes[:number]), rows)
            writer.write_table(part, row_group_size=max(rows, 1))


def replace(column: str, values: dict[int, object]) -> Callable[[pa.Table], pa.Table]:
    """A change of some rows of one column, for :func:`rewrite`."""

    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(column)
        items = table[column].to_pylist()
        for row, value in values.items():
            items[row] = value
        field = table.schema.field(position)
        return table.set_column(position, field, pa.array(items, field.type))

    return change


def _chunk(path: Path, group: int, column: int) -> tuple[int, int]:
    found = pq.read_metadata(path).row_group(group).column(column)
    start = found.dictionary_page_offset or found.data_page_offset
    return start, start + found.total_compressed_size


def _invert(path: Path, places: range) -> None:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 0xFF
    path.write_bytes(content)
