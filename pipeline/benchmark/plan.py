"""Planning an epoch of a very large dataset: seconds and memory, without a file."""

import time
import tracemalloc
from typing import Any

import numpy as np

from pipeline.data.manifest import Manifest, Shard
from pipeline.data.plan import EpochPlan, SplitIndex

FILES, GROUPS_OF_A_FILE, MEAN_ROWS = 10_000, 100, 100_000
STREAMS, BATCH_ROWS, BLOCK_ROWS = 8, 1_024, 32_768


def measure_plan() -> dict[str, Any]:
    """Seconds and peak megabytes of indexing and planning 1,000,000 row groups."""
    manifest = _large_manifest()
    # Tracing memory slows the code it traces: timed without, then traced.
    started = time.perf_counter()
    index = SplitIndex(manifest, "train")
    indexed = time.perf_counter()
    _plan(index)
    planned = time.perf_counter()
    tracemalloc.start()
    _plan(SplitIndex(manifest, "train"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "plan_row_groups": {
            "row_groups": FILES * GROUPS_OF_A_FILE,
            "files": FILES,
            "rows": index.rows,
            "index_seconds": indexed - started,
            "epoch_seconds": planned - indexed,
            "peak_mb": peak / 1e6,
        }
    }


def _plan(index: SplitIndex) -> None:
    EpochPlan(index, STREAMS, BATCH_ROWS, BLOCK_ROWS, seed=0).epoch(0, range(STREAMS))


def _large_manifest() -> Manifest:
    rng = np.random.default_rng(0)
    low, high = MEAN_ROWS * 9 // 10, MEAN_ROWS * 11 // 10
    rows = rng.integers(low, high, (FILES, GROUPS_OF_A_FILE)).tolist()
    shards = tuple(
        Shard(f"train/part-{number:05d}.parquet", tuple(groups), 0, "")
        for number, groups in enumerate(rows)
    )
    return Manifest("large", (), {"train": shards})
