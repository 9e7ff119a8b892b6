"""The loader: one order for any number of workers, exact resume, a thread that stops."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import (
    STREAMS,
    global_batches,
    numbered_dataset,
    numbered_loader,
    read_rows,
    rows_of,
)

from pipeline.data.batch import Batch, Collator, Segment
from pipeline.data.manifest import DatasetError


@settings(max_examples=40, deadline=None)
@given(
    shards=st.lists(st.lists(st.integers(0, 60), max_size=6), min_size=1, max_size=4),
    batch_rows=st.integers(1, 6),
    shuffle_rows=st.sampled_from([0, 1, 40, 100, 1000]),
    decoded=st.sampled_from([1, 7, 30, 1000]),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_one_order_and_exact_resume(
    shards: list[list[int]],
    batch_rows: int,
    shuffle_rows: int,
    decoded: int,
    seed: int,
    epoch: int,
    data: st.DataObject,
) -> None:
    rows = sum(map(sum, shards))
    if not rows:
        return
    with TemporaryDirectory() as name, read_rows(decoded):
        folder = Path(name)
        manifest = numbered_dataset(folder, shards)
        order = {"batch_size": STREAMS * batch_rows, "shuffle_rows": shuffle_rows, "seed": seed}
        whole = global_batches(folder, manifest, 1, epoch, **order)
        seen = [row for batch in whole for row in batch]
        assert sorted(seen) == list(range(rows))
        for workers in (2, 3, 4, 8):
            assert global_batches(folder, manifest, workers, epoch, **order) == whole
        # Stop after any batch with any number of workers, go on with any other number.
        stop = data.draw(st.integers(1, len(whole)))
        first = numbered_loader(folder, manifest, world_size=3, rank=1, **order)
        batches = first.epoch(epoch)
        for _ in range(stop):
            last = next(batches)
        batches.close()
        assert first.state_dict() == last.cursor
        if stop < len(whole):
            workers = data.draw(st.sampled_from([1, 2, 3, 4, 8]))
            rest = global_batches(folder, manifest, workers, epoch, first.state_dict(), **order)
            assert rest == whole[stop:]


def test_epochs_differ_and_repeat(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100, 100], [100]])
    loader = numbered_loader(tmp_path, manifest)
    first, second, again = (
        [row for batch in loader.epoch(epoch) for row in rows_of(batch) if row >= 0]
        for epoch in (0, 1, 0)
    )
    assert first != second
    assert first == again
    assert sorted(first) == sorted(second)


def test_shuffling_mixes_rows_across_row_groups_and_files(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50] * 8, [50] * 8])
    loader = numbered_loader(tmp_path, manifest, batch_size=80, shuffle_rows=400)
    groups = [{row // 50 for row in rows_of(batch)} for batch in loader.epoch(0)]
    assert np.mean([len(g) for g in groups]) > 10


def test_unshuffled_streams_read_on_in_file_order(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[10, 7], [15]])
    loader = numbered_loader(tmp_path, manifest, streams=2, batch_size=8, shuffle_rows=0)
    assert [rows_of(batch) for batch in loader.epoch(0)] == [
        [0, 1, 2, 3, 16, 17, 18, 19],
        [4, 5, 6, 7, 20, 21, 22, 23],
        [8, 9, 10, 11, 24, 25, 26, 27],
        [12, 13, 14, 15, 28, 29, 30, 31],
    ]


def test_the_last_batch_is_padded(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[21]])
    loader = numbered_loader(tmp_path, manifest, streams=2, batch_size=8, shuffle_rows=0)
    batches = list(loader.epoch(0))
    assert loader.steps == len(batches) == 3
    assert rows_of(batches[-1]) == [8, 9, -1, -1, 18, 19, 20, -1]
    assert batches[-1].rows == 5
    assert loader.counters["rows"] == 21
    # Fewer rows than streams: some workers have padding only, and as many batches.
    tiny = numbered_dataset(tmp_path / "tiny", [[3]])
    assert len(global_batches(tmp_path / "tiny", tiny, 8, 0)) == 1


def test_cursor_is_small_and_checked(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100]])
    loader = numbered_loader(tmp_path, manifest)
    batches = loader.epoch(2)
    next(batches)
    batches.close()
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (2, 1)
    assert len(str(state)) < 1000
    for setting, value in {"seed": 1, "shuffle_rows": 32, "batch_size": 16}.items():
        other = numbered_loader(tmp_path, manifest, **{setting: value})
        with pytest.raises(DatasetError, match=f"cannot resume: the checkpoint's {setting} is"):
            other.load_state_dict(state)
    # Another epoch than the cursor's starts at its beginning.
    loader.load_state_dict(state)
    assert len(list(loader.epoch(3))) == loader.steps


def test_a_finished_epoch_resumes_with_nothing_left(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100]])
    loader = numbered_loader(tmp_path, manifest)
    *_, last = loader.epoch(0)
    resumed = numbered_loader(tmp_path, manifest)
    resumed.load_state_dict(last.cursor)
    assert list(resumed.epoch(0)) == []
    assert len(list(resumed.epoch(1))) == loader.steps


def test_impossible_shares_are_refused(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100]])
    with pytest.raises(ValueError, match="batch size 33 is not a multiple of 8 streams"):
        numbered_loader(tmp_path, manifest, batch_size=33)
    with pytest.raises(ValueError, match=r"worker 0 of 9 .* raise data\.streams"):
        numbered_loader(tmp_path, manifest, world_size=9)


# The thread


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-train"]


def test_leaving_early_stops_the_thread(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[1000]])
    loader = numbered_loader(tmp_path, manifest)
    batches = loader.epoch(0)
    next(batches)
    assert len(reading_threads()) == 1
    started = time.perf_counter()
    batches.close()
    assert time.perf_counter() - started < 2
    assert not reading_threads()
    for _ in loader.epoch(0):
        break
    assert not reading_threads()


def test_read_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = numbered_dataset(tmp_path, [[1000]])
    made = counted_batches(monkeypatch)
    loader = numbered_loader(tmp_path, manifest, prefetch_batches=3)
    batches = loader.epoch(0)
    next(batches)
    time.sleep(0.3)
    # One handed out, three waiting, one in the thread's hand.
    assert len(made) == 5
    # What nobody was given is not counted.
    assert loader.counters["rows"] == 32
    batches.close()


def counted_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every batch that a reading thread makes."""
    made: list[int] = []
    collate = Collator.__call__

    def counting(self: Collator, segments: Sequence[Segment], cursor: dict[str, Any]) -> Batch:
        made.append(cursor["epoch"])
        return collate(self, segments, cursor)

    monkeypatch.setattr(Collator, "__call__", counting)
    return made


# Priming


def test_primed_epochs_are_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = numbered_dataset(tmp_path, [[300]])
    plain = numbered_loader(tmp_path, manifest)
    expected = [[rows_of(batch) for batch in plain.epoch(epoch)] for epoch in range(3)]
    made = counted_batches(monkeypatch)
    loader = numbered_loader(tmp_path, manifest, prefetch_batches=3)
    loader.prime(0)
    loader.prime(0)
    time.sleep(0.2)
    assert made == [0] * 4
    assert not loader.counters["rows"]
    for epoch in range(3):
        batches = loader.epoch(epoch)
        assert loader.state_dict()["step"] == 0
        loader.prime(epoch + 1)
        found = []
        for batch in batches:
            found.append(rows_of(batch))
            assert loader.state_dict() == batch.cursor
            # Together they keep to what one may hold: three, and one in the thread's hand.
            assert len(made) <= 10 * epoch + len(found) + 4 + 1
        assert found == expected[epoch]
    assert loader.counters["rows"] == 900
    loader.close()
    assert not reading_threads()


def test_a_cursor_throws_a_primed_epoch_away(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[300]])
    loader = numbered_loader(tmp_path, manifest)
    whole = [rows_of(batch) for batch in loader.epoch(1)]
    cursor = {**loader.state_dict(), "step": 4}
    other = numbered_loader(tmp_path, manifest)
    other.prime(1)
    other.load_state_dict(cursor)
    assert not reading_threads()
    other.prime(1)  # now from the cursor on
    assert [rows_of(batch) for batch in other.epoch(1)] == whole[4:]
    other.prime(2)
    assert [rows_of(batch) for batch in other.epoch(1)] == whole  # another one than was primed
    assert not reading_threads()


def test_dropping_an_epoch_unread_ends_its_thread(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[1000]])
    batches = numbered_loader(tmp_path, manifest).epoch(0)
    assert reading_threads()
    del batches
    assert not reading_threads()
