"""What two workers lost, taken together: the ceiling, the account, the same error on both."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from damage import flip_data_page
from processes import run_processes
from small_datasets import numbered_dataset, numbered_loader

pytestmark = pytest.mark.slow

# Streams 0-3 read the first half of the rows, worker 0's, the others the second half.
SHARDS = [[400, 400], [400, 400]]


def account(rank: int, world_size: int, folder: str, ceiling: float) -> Any:
    from pipeline.config.faults import FaultsConfig
    from pipeline.data.losses import loss_table
    from pipeline.data.manifest import DatasetError, load_manifest
    from pipeline.training.data_account import DataAccount

    loader = numbered_loader(
        Path(folder),
        load_manifest(folder),
        rank=rank,
        world_size=world_size,
        shuffle_rows=0,
        faults=FaultsConfig(unreadable="skip_row_group", max_lost_fraction=ceiling),
    )
    accounts = DataAccount({"train": loader}, torch.device("cpu"))
    seen = []
    for batch in loader.epoch(0):
        seen.append(batch.rows)
        try:
            lost = accounts.check("train")
        except DatasetError as error:
            return len(seen), str(error)
    rows, counters, losses = accounts.totals(sum(seen))
    return lost, rows, counters["rows"], loss_table(losses)


def test_losses_of_all_workers(tmp_path: Path) -> None:
    numbered_dataset(tmp_path, SHARDS)
    for shard in (0, 1):
        flip_data_page(tmp_path / f"train/{shard}.parquet", 1)
    assert pq.read_metadata(tmp_path / "train/0.parquet").num_row_groups == 2
    first, second = run_processes(account, 2, tmp_path, str(tmp_path), 0.6)
    assert first == second
    lost, rows, counted, table = first
    assert (lost, rows, counted) == (800, 800, 800)
    assert [(row["shard"][-9:], row["row_group"], row["rows"]) for row in table] == [
        ("0.parquet", 1, 400),
        ("1.parquet", 1, 400),
    ]
    # Each alone stays below the ceiling of 480 rows, together they pass it: both stop, together.
    first, second = run_processes(account, 2, tmp_path, str(tmp_path), 0.3)
    assert first == second
    assert "of 1,600 rows" in first[1]
    assert "0.parquet (" in first[1]
    assert "1.parquet (" in first[1]
