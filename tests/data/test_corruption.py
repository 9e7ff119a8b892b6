"""Corruption for real: no hang, no silent loss, and everything else where it was."""

import itertools
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from damage import flip_data_page, flip_footer, flip_page_header, replace, rewrite, truncate
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import numbered_dataset, numbered_loader, read_rows, rows_of

from pipeline.config.faults import FaultsConfig
from pipeline.data.loader import BatchLoader
from pipeline.data.losses import merged_losses, rows_by_kind
from pipeline.data.manifest import DatasetError, Manifest

# Two files; the row groups of the second are rows 60-89, 90-129 and 130-149.
SHARDS = [[40, 20], [30, 40, 20]]
ROWS = 150
WHOLE_FILE = set(range(60, 150))
MIDDLE = set(range(90, 130))

DAMAGES: dict[str, tuple[Callable[[Path], None], set[int], str]] = {
    "footer": (flip_footer, WHOLE_FILE, "cannot open this shard"),
    "page header": (lambda path: flip_page_header(path, 1), MIDDLE, "row group 1, column 'row'"),
    "data page": (lambda path: flip_data_page(path, 1, 2), MIDDLE, "row group 1, column 'number'"),
    "truncated": (truncate, WHOLE_FILE, "cannot open this shard"),
    "deleted": (lambda path: path.unlink(), WHOLE_FILE, "no such file"),
    "a row less": (
        lambda path: rewrite(path, lambda table: table.slice(0, 89)),
        WHOLE_FILE,
        "has 89 rows .* the file was changed",
    ),
}


def slots(loader: BatchLoader, epoch: int = 0) -> list[list[int]]:
    """Row ids by place in every batch, -1 where it is void."""
    return [rows_of(batch) for batch in loader.epoch(epoch)]


def without(batches: list[list[int]], lost: set[int]) -> list[list[int]]:
    return [[-1 if row in lost else row for row in batch] for batch in batches]


def side_by_side(loaders: list[BatchLoader], epoch: int = 0) -> list[list[int]]:
    """The global batches, place by place, of workers that share the streams evenly."""
    parts = [slots(loader, epoch) for loader in loaders]
    return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def joined(parts: list[list[list[int]]]) -> list[list[int]]:
    """The global batches out of every worker's, padding and void rows left out."""
    steps = zip(*parts, strict=True)
    return [[row for local in step for row in local if row >= 0] for step in steps]


def workers(
    folder: Path, manifest: Manifest, count: int, faults: FaultsConfig, **order: Any
) -> list[BatchLoader]:
    return [
        numbered_loader(folder, manifest, rank=rank, world_size=count, faults=faults, **order)
        for rank in range(count)
    ]


def skipping(kind: str, policy: str = "skip_row_group") -> FaultsConfig:
    return FaultsConfig.model_validate({kind: policy, "max_lost_fraction": 1.0})


def check_account(loaders: list[BatchLoader], rows: int, passes: int, kind: str, lost: int) -> None:
    """Rows read + rows lost = rows in the manifest, every pass."""
    losses = merged_losses(loss for loader in loaders for loss in loader.lost.losses())
    read = sum(loader.counters["rows"] for loader in loaders)
    assert rows_by_kind(losses) == ({kind: passes * lost} if lost else {})
    assert read + passes * lost == passes * rows


def problem_of(loader: BatchLoader) -> str | None:
    try:
        slots(loader)
    except DatasetError as error:
        return str(error)
    return None


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("shuffle_rows", [0, 80])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_the_place(
    tmp_path: Path, damage: str, shuffle_rows: int, world: int
) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    harm, _, message = DAMAGES[damage]
    harm(tmp_path / "train/1.parquet")
    failed = 0
    for loader in workers(tmp_path, manifest, world, FaultsConfig(), shuffle_rows=shuffle_rows):
        problem = problem_of(loader)
        if problem is not None:
            failed += 1
            assert re.search(rf"train/1\.parquet: .*{message}.*prepare the dataset again", problem)
    assert failed
    assert not [t for t in threading.enumerate() if t.name == "read-train"]


@pytest.mark.parametrize("decoded", [7, 35, 1000])
@pytest.mark.parametrize("shuffle_rows", [0, 80])
@pytest.mark.parametrize("damage", DAMAGES)
def test_skipped_row_groups_leave_the_rest_in_its_place(
    tmp_path: Path, damage: str, shuffle_rows: int, decoded: int
) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    harm, lost, _ = DAMAGES[damage]
    order = {"shuffle_rows": shuffle_rows, "batch_size": 16}
    sound = numbered_loader(tmp_path, manifest, **order)
    expected = [without(slots(sound, epoch), lost) for epoch in (0, 1)]
    harm(tmp_path / "train/1.parquet")
    # Whether a row group is decoded whole, with its neighbours or in slices changes nothing.
    with read_rows(decoded):
        for world in (1, 2):
            loaders = workers(tmp_path, manifest, world, skipping("unreadable"), **order)
            for epoch in (0, 1):
                assert side_by_side(loaders, epoch) == expected[epoch]
            check_account(loaders, ROWS, 2, "unreadable", len(lost))
    (first, *_) = loaders[-1].lost.losses() or loaders[0].lost.losses()
    assert first.shard.endswith("train/1.parquet")
    assert first.split == "train"


SCHEMAS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "missing": (lambda table: table.drop_columns(["number"]), "column 'number' is missing"),
    "renamed": (
        lambda table: table.rename_columns(["row", "labels", "number", "click"]),
        "column 'tags' is missing",
    ),
    "re-typed": (
        lambda table: table.set_column(0, "row", table["row"].cast(pa.string())),
        "column 'row' holds string in this shard, the manifest says int64",
    ),
    "a list no more": (
        lambda table: table.set_column(1, "tags", table["row"]),
        "column 'tags' holds int64 in this shard",
    ),
}


@pytest.mark.parametrize("change", SCHEMAS)
def test_schema_drift(tmp_path: Path, change: str) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    expected = without(slots(numbered_loader(tmp_path, manifest)), WHOLE_FILE)
    alter, message = SCHEMAS[change]
    rewrite(tmp_path / "train/1.parquet", alter)
    with pytest.raises(DatasetError, match=rf"train/1\.parquet: {message}.*prepare"):
        slots(numbered_loader(tmp_path, manifest))
    loader = numbered_loader(tmp_path, manifest, faults=skipping("schema_drift"))
    assert slots(loader) == expected
    check_account([loader], ROWS, 1, "schema_drift", len(WHOLE_FILE))
    assert message in loader.lost.losses()[0].reason


def test_columns_too_many_and_other_widths_are_fine(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    expected = slots(numbered_loader(tmp_path, manifest))

    def change(table: pa.Table) -> pa.Table:
        table = table.append_column("more", table["row"])
        table = table.set_column(0, "row", table["row"].cast(pa.int32()))
        return table.set_column(3, "click", table["click"].cast(pa.float64()))

    rewrite(tmp_path / "train/1.parquet", change)
    assert slots(numbered_loader(tmp_path, manifest)) == expected


def test_values_that_do_not_convert_make_a_row_group_void(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    expected = without(slots(numbered_loader(tmp_path, manifest)), MIDDLE)

    def change(table: pa.Table) -> pa.Table:
        values = [row + 0.5 if row == 100 else float(row) for row in table["row"].to_pylist()]
        return table.set_column(0, "row", pa.array(values, pa.float64()))

    rewrite(tmp_path / "train/1.parquet", change)
    for decoded in (7, 35, 1000):
        with read_rows(decoded):
            loader = numbered_loader(tmp_path, manifest, faults=skipping("schema_drift"))
            assert slots(loader) == expected
            check_account([loader], ROWS, 1, "schema_drift", len(MIDDLE))


BAD_VALUES: dict[str, dict[str, dict[int, object]]] = {
    "labels": {"click": {0: None, 40: 7, 41: -1}},
    # Row 100 has no tags, row 101 has one.
    "ids": {"row": {0: 10_000, 40: -1}, "tags": {41: [150], 42: [0, 1 << 40]}},
}
BAD_ROWS = {"labels": {60, 100, 101}, "ids": {60, 100, 101, 102}}


@pytest.mark.parametrize("shuffle_rows", [0, 80])
@pytest.mark.parametrize("policy", ["skip_row", "skip_row_group"])
@pytest.mark.parametrize("kind", ["labels", "ids"])
def test_rows_with_bad_values(tmp_path: Path, kind: str, policy: str, shuffle_rows: int) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    order = {"shuffle_rows": shuffle_rows, "batch_size": 16}
    sound = slots(numbered_loader(tmp_path, manifest, **order))
    for column, values in BAD_VALUES[kind].items():
        rewrite(tmp_path / "train/1.parquet", replace(column, values))
    with pytest.raises(DatasetError, match=r"1\.parquet: row group [01], column .*, row \d+: "):
        slots(numbered_loader(tmp_path, manifest, **order))
    lost = BAD_ROWS[kind] if policy == "skip_row" else set(range(60, 90)) | MIDDLE
    for decoded in (7, 35, 1000):
        with read_rows(decoded):
            for world in (1, 2):
                loaders = workers(tmp_path, manifest, world, skipping(kind, policy), **order)
                assert side_by_side(loaders) == without(sound, lost)
                check_account(loaders, ROWS, 1, kind, len(lost))


@pytest.mark.parametrize("shuffle_rows", [0, 400])
@pytest.mark.parametrize("kind", ["labels", "unreadable"])
def test_one_bad_row_group_among_small_ones(tmp_path: Path, kind: str, shuffle_rows: int) -> None:
    """Decoded together with its neighbours, it alone is lost."""
    manifest = numbered_dataset(tmp_path, [[20] * 10])
    order = {"streams": 1, "shuffle_rows": shuffle_rows}
    sound = slots(numbered_loader(tmp_path, manifest, **order))
    if kind == "labels":
        rewrite(tmp_path / "train/0.parquet", replace("click", {145: 2}))
    else:
        flip_data_page(tmp_path / "train/0.parquet", 7)
    for decoded in (30, 1000):
        with read_rows(decoded):
            loader = numbered_loader(tmp_path, manifest, faults=skipping(kind), **order)
            for _ in range(2):
                assert slots(loader) == without(sound, set(range(140, 160)))
            check_account([loader], 200, 2, kind, 20)


def test_a_policy_covers_its_own_kind_only(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, SHARDS)
    rewrite(tmp_path / "train/1.parquet", replace("click", {40: 7}))
    loader = numbered_loader(tmp_path, manifest, faults=skipping("ids", "skip_row"))
    with pytest.raises(DatasetError, match=r"row group 1, column 'click', row 10: holds 7"):
        slots(loader)
    flip_data_page(tmp_path / "train/0.parquet", 0)
    loader = numbered_loader(tmp_path, manifest, faults=skipping("labels"))
    with pytest.raises(DatasetError, match=r"0\.parquet: cannot read row group 0, column 'row'"):
        slots(loader)


def test_a_worker_that_loses_too_much_stops(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[1000], [1000, 1000]])
    flip_data_page(tmp_path / "train/1.parquet", 1)
    rewrite(tmp_path / "train/0.parquet", replace("click", {3: None}))
    # One row of 3000 is below the ceiling of a thousandth, a whole row group is not.
    faults = FaultsConfig(labels="skip_row", unreadable="skip_row_group")
    message = (
        r"split 'train': [\d,]+ of 3,000 rows \(.*\) of this epoch .* "
        r"Worst: \S+1\.parquet \([\d,]+ rows; unreadable, row group 1: .*'row'.* raise max_lost"
    )
    with pytest.raises(DatasetError, match=message):
        slots(numbered_loader(tmp_path, manifest, faults=faults, shuffle_rows=0))
    rewrite(tmp_path / "train/1.parquet", lambda table: table)  # nothing to read it by
    assert not [t for t in threading.enumerate() if t.name == "read-train"]


def test_losses_below_the_ceiling_go_on(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[1000], [1000, 1000]])
    rewrite(tmp_path / "train/0.parquet", replace("click", {3: None}))
    loader = numbered_loader(tmp_path, manifest, faults=FaultsConfig(labels="skip_row"))
    for epoch in range(4):  # a ceiling of 3 rows an epoch
        slots(loader, epoch)
    (loss,) = loader.lost.losses()
    assert (loss.rows, loss.kind, loss.row_group) == (4, "labels", 0)
    assert loss.reason.startswith("column 'click': holds null or NaN")


def test_a_file_that_changes_under_the_reader(tmp_path: Path) -> None:
    """Found sound and damaged afterwards: the rest of it is lost, and counted."""
    manifest = numbered_dataset(tmp_path, [[4000]])
    with read_rows(300):
        loader = numbered_loader(
            tmp_path, manifest, streams=1, shuffle_rows=0, faults=skipping("unreadable")
        )
        assert sum(batch.rows for batch in loader.epoch(0)) == 4000
        flip_data_page(tmp_path / "train/0.parquet", 0)
        read = sum(batch.rows for batch in loader.epoch(1))
    assert read + loader.lost.rows_of_epoch == 4000
    assert loader.lost.rows_of_epoch > 0


@settings(max_examples=25, deadline=None)
@given(
    shards=st.lists(st.lists(st.integers(0, 60), max_size=5), min_size=1, max_size=3),
    batch_rows=st.integers(1, 6),
    shuffle_rows=st.sampled_from([0, 1, 40, 1000]),
    decoded=st.sampled_from([1, 7, 30, 1000]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_any_corrupt_row_groups(
    shards: list[list[int]],
    batch_rows: int,
    shuffle_rows: int,
    decoded: int,
    seed: int,
    data: st.DataObject,
) -> None:
    rows = sum(map(sum, shards))
    if not rows:
        return
    groups = [(s, g) for s, sizes in enumerate(shards) for g, size in enumerate(sizes) if size]
    corrupt = data.draw(st.sets(st.sampled_from(groups)))
    lost: set[int] = set()
    first = 0
    with TemporaryDirectory() as name, read_rows(decoded):
        folder = Path(name)
        manifest = numbered_dataset(folder, shards)
        for s, sizes in enumerate(shards):
            for g, size in enumerate(sizes):
                if (s, g) in corrupt:
                    flip_data_page(
                        folder / f"train/{s}.parquet", g, random.Random(g).choice([0, 2])
                    )
                    lost |= set(range(first, first + size))
                first += size
        order = {"batch_size": 8 * batch_rows, "shuffle_rows": shuffle_rows, "seed": seed}
        whole: list[list[int]] | None = None
        for world in (1, 2, 3, 4, 8):
            loaders = workers(folder, manifest, world, skipping("unreadable"), **order)
            batches = joined([slots(loader) for loader in loaders])
            check_account(loaders, rows, 1, "unreadable", len(lost))
            seen = sorted(row for batch in batches for row in batch)
            assert seen == sorted(set(range(rows)) - lost)
            whole = batches if whole is None else whole
            assert batches == whole
        # A resume on other workers sees the rest, and counts the rest of the losses.
        stop = data.draw(st.integers(0, len(whole or []) - 1))
        cursor = {**numbered_loader(folder, manifest, **order).state_dict(), "step": stop}
        loaders = workers(folder, manifest, 2, skipping("unreadable"), **order)
        for loader in loaders:
            loader.load_state_dict(cursor)
        assert joined([slots(loader) for loader in loaders]) == (whole or [])[stop:]
