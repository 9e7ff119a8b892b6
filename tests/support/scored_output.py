"""Rows to score that can be told apart, a runner without Ray, and what came out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_versions import log_rows

from pipeline.registry.scorer import RowScorer
from pipeline.scoring.actors import ItemResult
from pipeline.scoring.item import score_item


def run_here(model, task, items) -> Iterator[ItemResult]:
    """The pieces one after the other, in this process."""
    scorer = RowScorer.load(model.folder)
    for item in items:
        yield ItemResult(score_item(scorer, task, item), "here", 0.0, 1.0, 1.0)


def numbered_rows(count: int, first: int = 0, day: str = "2026-11-01") -> pa.Table:
    """Rows of the shop with a number each; ``device`` is sometimes missing."""
    rows = log_rows(count, seed=first + 1, day=day)
    device = [None if n % 11 == 0 else d for n, d in enumerate(rows["device"].to_pylist())]
    rows = rows.set_column(rows.schema.get_field_index("device"), "device", pa.array(device))
    return rows.append_column("row", pa.array(np.arange(first, first + count)))


def write_logs(folder: Path, group_rows: int = 200) -> pa.Table:
    """Two days, three files of 500, 700 and 0 rows; returns all rows."""
    days = [numbered_rows(500, 0), numbered_rows(700, 500, "2026-11-02")]
    for name, rows in (("dt=1/a", days[0]), ("dt=2/a", days[1]), ("dt=2/b", days[1].slice(0, 0))):
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path, row_group_size=group_rows, write_page_checksum=True)
    (folder / "dt=2" / "_SUCCESS").touch()
    return pa.concat_tables(days)


def output_rows(folder: Path) -> pa.Table:
    """What a reader that knows nothing of this project sees, by row number."""
    return pq.read_table(folder).sort_by("row")


def visible(folder: Path) -> list[str]:
    """Files of a folder that a reader of Parquet data sets looks at."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return sorted(str(p) for p in found if not any(part[0] in "._" for part in p.parts))
