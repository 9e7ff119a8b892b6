"""What a loader carries over to another process, and where a batch's rows lie."""

from pathlib import Path

import pytest
from small_datasets import numbered_dataset, numbered_loader, rows_of

from pipeline.config.faults import FaultsConfig
from pipeline.data.losses import LostRows
from pipeline.data.plan import SplitIndex

SHARDS = [[30, 25], [40], [3, 60, 17]]


@pytest.mark.parametrize("shuffle_rows", [0, 64])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_the_sources_of_a_batch(
    tmp_path: Path, shuffle_rows: int, rank: int, world_size: int
) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    index = SplitIndex(manifest, "train")
    loader = numbered_loader(
        tmp_path, manifest, shuffle_rows=shuffle_rows, rank=rank, world_size=world_size
    )
    for number, batch in enumerate(loader.epoch(1)):
        expected: dict[str, set[int]] = {}
        for row in rows_of(batch):
            if row >= 0:
                path, group, _ = index.place(row)
                expected.setdefault(str(tmp_path / path), set()).add(group)
        found = loader.sources(1, number)
        assert found == {path: sorted(groups) for path, groups in sorted(expected.items())}


def test_a_batch_that_is_looked_at_is_in_no_books(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    expected = [rows_of(batch) for batch in numbered_loader(tmp_path, manifest).epoch(0)]
    loader = numbered_loader(tmp_path, manifest)
    batches = loader.epoch(0)
    seen = []
    while (looked_at := batches.peek()) is not None:
        books, cursor = loader.books(), loader.state_dict()
        assert books["counters"].get("rows", 0) == sum(map(len, seen))
        assert cursor["step"] == len(seen)
        assert batches.peek() is looked_at
        assert next(batches) is looked_at
        seen.append([row for row in rows_of(looked_at) if row >= 0])
    assert next(batches, None) is None
    assert seen == [[row for row in rows if row >= 0] for rows in expected]
    assert loader.books()["counters"]["rows"] == 175


def test_books_go_on_and_add_up(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    first, second, merged = (numbered_loader(tmp_path, manifest) for _ in range(3))
    for loader, steps in ((first, 2), (second, 3)):
        batches = loader.epoch(0)
        for _ in range(steps):
            next(batches)
        batches.close()
    assert first.books()["counters"]["rows"] == 64
    merged.load_books([first.books(), second.books()])
    assert merged.counters["rows"] == 64 + 96
    merged.load_books([first.books()])
    merged.load_state_dict(first.state_dict())
    assert sum(len(rows_of(batch)) for batch in merged.epoch(0)) > 0
    assert merged.counters["rows"] == 175


def test_lost_rows_go_on_within_their_epoch(tmp_path: Path) -> None:
    index = SplitIndex(numbered_dataset(tmp_path, SHARDS), "train")
    faults = FaultsConfig(labels="skip_row", max_lost_fraction=0.1)

    def account() -> LostRows:
        return LostRows(index, str, faults)

    one, two, both = account(), account(), account()
    code = one.code_of("labels", 2, "label is 7")
    one.count({code: 4})
    one.begin_epoch()
    one.count({code: 3})
    two.count({two.code_of("labels", 4, "label is 9"): 5, two.code_of("labels", 2, "other"): 1})
    both.load_state_dict([*one.state_dict(), *two.state_dict()])
    assert both.rows_of_epoch == 9
    assert [(loss.row_group, loss.rows, loss.reason) for loss in both.losses()] == [
        (0, 8, "label is 7"),
        (1, 5, "label is 9"),
    ]
    assert both.too_many(18)
    assert not both.too_many(17)
