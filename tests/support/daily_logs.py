"""Parquet files as somebody else leaves them, two a day, and experiments on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Experiment
from pipeline.config.load import parse_experiment, with_absolute_paths
from pipeline.data.sources.dataset import Dataset, open_dataset

DAYS = [f"2026-11-{day:02d}" for day in range(1, 7)]
ALL_DAYS = {"files": "dt={date}", "first_date": DAYS[0], "last_date": DAYS[3]}
SPLITS: dict[str, Any] = {"train": ALL_DAYS, "valid": {"files": f"dt={DAYS[4]}/*.parquet"}}
COUNTED = {
    "categorical": [{"name": "user"}, {"name": "tags", "weights": "tag_weights"}],
    "numeric": [{"name": "price", "buckets": 8}, {"name": "age", "transform": "log1p"}],
}
UNCOUNTED = {
    "categorical": [{"name": "user", "encoder": "hash", "rows": 100}],
    "numeric": [{"name": "price", "scale": "none"}, {"name": "count", "scale": "none"}],
}


def table(day: int, rows: int = 40) -> pa.Table:
    random = np.random.default_rng(day)
    tags = [[f"t{n}" for n in range(n % 4)] if n % 5 else None for n in range(rows)]
    price = random.random(rows) * 100
    price[:3] = np.nan
    return pa.table(
        {
            "user": pa.array([f"u{n}" for n in random.integers(0, 30, rows)]),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "tag_weights": pa.array([None if t is None else [0.5] * len(t) for t in tags]),
            "price": price,
            "age": pa.array(random.integers(18, 90, rows), pa.int16()),
            "count": pa.array(range(rows), pa.int64()),
            "click": pa.array(random.integers(0, 2, rows), pa.int8()),
            "seen": pa.array([1] * rows, pa.int8()),
            "unused": pa.array([day] * rows),
        }
    )


def write_days(folder: Path) -> Path:
    """Two files a day, as Spark leaves them."""
    for number, day in enumerate(DAYS):
        (folder / f"dt={day}").mkdir(parents=True)
        rows = table(number)
        for part in range(2):
            path = folder / f"dt={day}/part-{part}.parquet"
            pq.write_table(rows.slice(20 * part, 20), path, row_group_size=8)
        (folder / f"dt={day}/_SUCCESS").touch()
    return folder


def experiment(logs: Path | str, **sections: Any) -> Experiment:
    data = {"path": str(logs), "splits": SPLITS, **sections.pop("data", {})}
    place = sections.pop("storage", str(Path(logs).parent / "runs"))
    tree = {
        "name": "unit",
        "data": data,
        "features": COUNTED,
        "tasks": [{"name": "click", "space": "seen"}],
        "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [4]}]},
        "storage": {"path": place},
        **sections,
    }
    return with_absolute_paths(parse_experiment(tree))


def paths(dataset: Dataset, split: str = "train") -> list[str]:
    return [shard.path for shard in dataset.manifest.splits[split]]


def opened(logs: Path, **splits: Any) -> Dataset:
    splits = {"valid": SPLITS["valid"], **splits}
    return open_dataset(experiment(logs, data={"splits": splits}, features=UNCOUNTED))


# Which files
