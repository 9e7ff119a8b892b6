"""The datasets the reader is measured on: generated, written like any prepared dataset."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config.features import CategoricalFeature, FeaturesConfig, NumericFeature
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import Column, Manifest
from pipeline.data.preparing.writer import DatasetWriter

SINGLE, LISTS, NUMBERS, LABELS = 26, 5, 13, 2
TABLE_ROWS = 100_000
MEAN_LENGTH = 8
_ROWS_AT_A_TIME = 131_072
_VALID_ROWS = 8_192

TASKS = [TaskConfig(name=f"label_{i}") for i in range(LABELS)]


def write_benchmark_dataset(
    folder: Path, rows: int, lists: int, table_rows: int = TABLE_ROWS
) -> Manifest:
    """``rows`` rows of 26 ids, 13 numbers, 2 labels and ``lists`` lists of 8 ids on average.

    Ids are Zipf distributed over the ``table_rows`` rows of a table. A few rows of the train split
    are the valid split too.
    """
    columns = [Column(f"id_{i}", "key", "int64") for i in range(SINGLE)]
    columns += [Column(f"list_{i}", "key", "list<item: int64>") for i in range(lists)]
    columns += [Column(f"number_{i}", "numeric", "float") for i in range(NUMBERS)]
    columns += [Column(task.name, "label", "float") for task in TASKS]
    with DatasetWriter(folder, "benchmark", columns) as writer:
        for number, batch in enumerate(_batches(rows, lists, table_rows)):
            writer.write("train", batch)
            if not number:
                writer.write("valid", batch.slice(0, _VALID_ROWS))
        return writer.finish()


def benchmark_features(lists: int, encoder: str, table_rows: int = TABLE_ROWS) -> FeaturesConfig:
    """Features of such a dataset: every column, ids by the encoder named."""
    names = [f"id_{i}" for i in range(SINGLE)] + [f"list_{i}" for i in range(lists)]
    return FeaturesConfig.model_validate(
        {
            "categorical": [
                CategoricalFeature.model_validate(
                    {"name": name, "encoder": encoder, "rows": table_rows}
                )
                for name in names
            ],
            "numeric": [NumericFeature(name=f"number_{i}") for i in range(NUMBERS)],
        }
    )


def _batches(rows: int, lists: int, table_rows: int) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(0)
    for start in range(0, rows, _ROWS_AT_A_TIME):
        count = min(_ROWS_AT_A_TIME, rows - start)
        columns: dict[str, pa.Array] = {}
        for i in range(SINGLE):
            columns[f"id_{i}"] = pa.array(_ids(rng, count, table_rows))
        for i in range(lists):
            offsets = np.concatenate([[0], np.cumsum(rng.poisson(MEAN_LENGTH, count))])
            columns[f"list_{i}"] = pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)),
                pa.array(_ids(rng, int(offsets[-1]), table_rows)),
            )
        for i in range(NUMBERS):
            columns[f"number_{i}"] = pa.array(rng.standard_normal(count, np.float32))
        for task in TASKS:
            columns[task.name] = pa.array((rng.random(count) < 0.1).astype(np.float32))
        yield pa.record_batch(columns)


def _ids(rng: np.random.Generator, count: int, table_rows: int) -> np.ndarray:
    ids: np.ndarray = rng.zipf(1.2, count) % table_rows
    return ids.astype(np.int64)
