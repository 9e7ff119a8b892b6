"""The plan of an epoch: exact rows, equal streams, fixed order, a million row groups."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.manifest import DatasetError, Manifest, Shard
from pipeline.data.plan import EpochPlan, SplitIndex


def index_of(*shards: tuple[int, ...]) -> SplitIndex:
    entries = tuple(Shard(f"train/{i}.parquet", groups, 0, "") for i, groups in enumerate(shards))
    return SplitIndex(Manifest("m", (), {"train": entries}), "train")


def rows_of(plan: EpochPlan, epoch: int) -> list[list[int]]:
    """Row numbers of every stream in training order."""
    streams = []
    for stream in plan.epoch(epoch, range(plan.streams)):
        visited = np.concatenate(
            [np.arange(a, b) for a, b in zip(stream.unit_first, stream.unit_stop, strict=True)]
        )
        if stream.shuffled:
            blocks = zip(stream.block_at[:-1], stream.block_at[1:], strict=True)
            visited = np.concatenate(
                [visited[a:b][stream.permutation(n)] for n, (a, b) in enumerate(blocks)]
            )
        streams.append(visited.tolist())
    return streams


def test_places_of_rows() -> None:
    index = index_of((3, 0, 2), (), (4,))
    assert index.rows == 9
    assert index.place(0) == ("train/0.parquet", 0, 0)
    assert index.place(3) == ("train/0.parquet", 2, 0)
    assert index.place(8) == ("train/2.parquet", 0, 3)
    assert index.empty_shards == ["train/1.parquet"]


def test_a_split_that_is_empty_or_absent() -> None:
    with pytest.raises(DatasetError, match="split 'train' of dataset 'm' has no rows; prepare"):
        index_of((0,), ())
    with pytest.raises(DatasetError, match=r"no split 'test' \(it has train\)"):
        SplitIndex(Manifest("m", (), {"train": ()}), "test")


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=12).map(tuple), min_size=1, max_size=6),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(0, 2**40),
    st.integers(0, 3),
)
def test_every_row_once_in_equal_streams(
    shards: list[tuple[int, ...]], streams: int, rows: int, blocks: int, seed: int, epoch: int
) -> None:
    if not sum(map(sum, shards)):
        return
    index = index_of(*shards)
    plan = EpochPlan(index, streams, rows, blocks * rows, seed)
    ordered = rows_of(plan, epoch)
    assert sorted(row for stream in ordered for row in stream) == list(range(index.rows))
    lengths = [len(stream) for stream in ordered]
    assert max(lengths) - min(lengths) <= 1
    assert plan.steps == -(-max(lengths) // rows)
    assert rows_of(plan, epoch) == ordered


def test_unshuffled_streams_are_ranges_in_file_order() -> None:
    plan = EpochPlan(index_of((5, 5), (7,)), 4, 2, 0, seed=3)
    ordered = rows_of(plan, 5)
    assert [row for stream in ordered for row in stream] == list(range(17))


def test_seed_and_epoch_change_the_order() -> None:
    index = index_of(tuple([50] * 20))
    orders = [
        rows_of(EpochPlan(index, 2, 10, 100, seed), epoch) for seed in (0, 1) for epoch in (0, 1)
    ]
    for a in range(4):
        for b in range(a):
            assert orders[a] != orders[b]


@pytest.mark.parametrize("groups", [[1000] * 100, [12_500] * 8, [700, 2300] * 33 + [1000]])
@pytest.mark.parametrize("streams", [1, 8])
def test_training_order_is_unrelated_to_file_order(groups: list[int], streams: int) -> None:
    if len(groups) < 10 and streams == 8:
        groups = groups * 4
    index = index_of(tuple(groups))
    rows_each = 512 // streams
    plan = EpochPlan(
        index, streams, rows_each, index.rows // streams // 10 // rows_each * rows_each, 0
    )
    orders = []
    for epoch in (0, 1):
        streams_rows = rows_of(plan, epoch)
        batches = [
            row
            for step in range(plan.steps)
            for stream in streams_rows
            for row in stream[step * rows_each : (step + 1) * rows_each]
        ]
        orders.append(np.array(batches))
        # Rows come once each, so ranks are the numbers themselves.
        correlation = np.corrcoef(np.arange(index.rows), orders[-1])[0, 1]
        assert abs(correlation) < 0.01
    # When a row comes in one epoch says nothing about when it comes in the next.
    steps = [np.argsort(order) // 512 for order in orders]
    assert abs(np.corrcoef(*steps)[0, 1]) < 0.5
    # Rows mix, not batches: neighbours in training come from far apart in the file.
    assert np.median(np.abs(np.diff(orders[0]))) > index.rows / 10 / streams / 5


def test_a_million_row_groups() -> None:
    tracemalloc.start()
    shards = tuple(Shard(f"train/{i}.parquet", (1000,) * 100, 0, "") for i in range(10_000))
    manifest = Manifest("m", (), {"train": shards})
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    started = time.perf_counter()
    plan = EpochPlan(SplitIndex(manifest, "train"), 64, 64, 64 * 64, 0)
    streams = plan.epoch(0, range(8))
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert sum(stream.rows for stream in streams) == 125_000_000
    assert seconds < 10
    assert peak < 200e6
