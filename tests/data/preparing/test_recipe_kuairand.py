"""The KuaiRand recipe on the real files, and its joins on small ones."""

import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.kuairand import (
    USER_CATEGORICAL,
    USER_NUMERIC,
    VIDEO_CATEGORICAL,
    VIDEO_NUMERIC,
    kuairand,
)
from pipeline.data.preparing.shards import arrow_schema

REAL = Path(__file__).parents[3].parent / "shared" / "data"
LOG = """\
user_id video_id date hourmin time_ms is_click is_follow is_comment is_forward long_view \
play_time_ms duration_ms comment_stay_time is_profile_enter label timestamp
1 10 20220408 1700 0 1 0 0 0 1 9000 6000 0 0 1 x
1 11 20220417 300 0 0 0 0 0 0 500 0 0 0 0 x
2 10 20220418 0 0 1 0 0 0 0 30000 6000 0 0 1 x
3 12 20220420 2300 0 1 0 0 0 1 1500 6000 0 0 0 x
"""


def write_files(folder: Path) -> None:
    (folder / "tables").mkdir(parents=True)
    log = LOG.replace(" ", "\t")
    (folder / "processed_standard_kcore_15.tsv.xz").write_bytes(lzma.compress(log.encode()))
    header = ",".join(["user_id", *USER_CATEGORICAL, *USER_NUMERIC])
    rows = [
        f"{user},{activity},{','.join(['5'] * (len(USER_CATEGORICAL) - 1))},1,2,3,4"
        for user, activity in ((2, "full_active"), (1, "UNKNOWN"))
    ]
    (folder / "tables" / "user_features_pure.csv").write_text("\n".join([header, *rows]))
    header = ",".join(["video_id", *VIDEO_CATEGORICAL, *VIDEO_NUMERIC, "tag"])
    rows = ['10,77,NORMAL,Kmovie,88,9.0,720.0,1280.0,"3,14"', "11,78,AD,Kmovie,89,4.0,,,"]
    (folder / "tables" / "video_features_basic_pure.csv").write_text("\n".join([header, *rows]))


def read(recipe: Recipe) -> dict[str, pa.Table]:
    batches: dict[str, list[pa.RecordBatch]] = {}
    for split, batch in recipe.read():
        batches.setdefault(split, []).append(batch)
    schema = arrow_schema(recipe.columns)
    return {split: pa.Table.from_batches(b, schema) for split, b in batches.items()}


def test_joins_labels_and_time_split(tmp_path: Path) -> None:
    write_files(tmp_path)
    recipe = kuairand(tmp_path)
    tables = read(recipe)
    train = tables["train"].to_pydict()
    assert train["user_id"] == [1, 1]
    assert train["hour"] == [17, 3]
    assert train["weekday"] == [4, 6]  # Friday 8 and Sunday 17 April 2022
    assert train["click"] == [1, 0]
    assert train["long_view"] == [1, 0]
    assert train["like"] == [1, 0]
    assert train["play_ratio"] == [1.5, None]
    assert train["has_duration"] == [1, 0]
    assert train["duration_seconds"] == [6.0, None]
    assert train["user_active_degree"] == [None, None]
    assert train["follow_user_num"] == [1.0, 1.0]
    assert train["author_id"] == ["77", "78"]
    assert train["tag"] == [["3", "14"], None]
    assert train["server_width"] == [720.0, None]
    assert tables["valid"].column("play_ratio").to_pylist() == [2.0], "capped"
    assert tables["valid"].column("user_active_degree").to_pylist() == ["full_active"]
    stranger = tables["test"].to_pylist()[0]
    assert (stranger["user_id"], stranger["video_id"]) == (3, 12)
    assert stranger["follow_user_num"] is stranger["author_id"] is stranger["tag"] is None


def test_no_feature_comes_from_the_impression_s_outcome(tmp_path: Path) -> None:
    write_files(tmp_path)
    recipe = kuairand(tmp_path)
    features = {c.name for c in recipe.columns if c.role in ("categorical", "numeric")}
    assert not features & {
        *("play_time_ms", "play_ratio", "is_click", "long_view", "is_follow", "is_comment"),
        *("is_forward", "comment_stay_time", "is_profile_enter", "label", "time_ms", "timestamp"),
    }
    assert [(t.name, t.loss, t.space) for t in recipe.tasks] == [
        ("click", "binary_cross_entropy", None),
        ("long_view", "binary_cross_entropy", None),
        ("like", "binary_cross_entropy", None),
        ("play_ratio", "squared_error", "has_duration"),
    ]


def test_missing_ambiguous_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected one file processed_standard_\*\.tsv\*"):
        kuairand(tmp_path)
    write_files(tmp_path)
    log = tmp_path / "processed_standard_kcore_15.tsv.xz"
    broken = LOG.replace("9000", "soon").replace(" ", "\t").encode()
    log.write_bytes(lzma.compress(broken))
    with pytest.raises(DatasetError, match=r"kcore_15\.tsv\.xz: rows 1 to 4, column 'play_time_ms"):
        read(kuairand(tmp_path))
    (tmp_path / "user_features_other.csv").write_text("user_id\n1\n")
    with pytest.raises(DatasetError, match=r"user_features_pure\.csv, .*user_features_other\.csv"):
        kuairand(tmp_path)


def test_the_real_files_have_the_published_rates() -> None:
    if not (REAL / "kuairand-27k-explicit").is_dir():
        pytest.skip("the KuaiRand files are not on this machine")
    tables = read(kuairand(REAL))
    assert {s: len(t) for s, t in tables.items()} == {
        "train": 33_485,
        "valid": 4_508,
        "test": 3_835,
    }
    rows = pa.concat_tables(tables.values())
    rates = {c: np.mean(rows.column(c).to_numpy()) for c in ("click", "long_view", "like")}
    assert rates["click"] == pytest.approx(0.6571, abs=5e-5)
    assert rates["long_view"] == pytest.approx(0.4619, abs=5e-5)
    assert rates["like"] == pytest.approx(0.8068, abs=5e-5)
    assert rows.column("play_ratio").null_count == 7_738
    assert rows.column("follow_user_num").null_count == 0
    assert rows.column("author_id").null_count / len(rows) == pytest.approx(0.973, abs=1e-3)
    dates = {split: set(t.column("date").to_pylist()) for split, t in tables.items()}
    assert max(dates["train"]) < min(dates["valid"]) <= max(dates["valid"]) < min(dates["test"])
