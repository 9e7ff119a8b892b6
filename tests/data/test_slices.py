"""Slices: the most frequent values of a column, by name, for metrics."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_datasets import write_dataset

from pipeline.config import ConfigError
from pipeline.data.hashing import hash_strings
from pipeline.data.keys import NULL_KEY
from pipeline.data.manifest import DatasetError
from pipeline.data.slices import SliceColumn, fit_slices, load_slices, save_slices


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    table = pa.table(
        {"tab": ["home", "search"], "city": pa.array([3, 4], pa.int32()), "x": [0.0, 1.0]}
    )
    counts = pa.array([9, 5, 1], pa.int64())
    tabs = pa.table({"value": ["home", "search", "rare"], "count": counts})
    cities = pa.table({"value": pa.array([4, 3, 10**6], pa.int64()), "count": counts})
    statistics = {
        "categorical": {
            "tab": {"vocabulary": "vocabularies/tab.parquet", "values": tabs},
            "city": {"vocabulary": "vocabularies/city.parquet", "values": cities},
        }
    }
    roles = {"tab": "categorical", "city": "categorical", "x": "numeric"}
    write_dataset(tmp_path, {"train": [(table, 2)]}, roles, statistics)
    return tmp_path


def test_the_most_frequent_values_come_first_with_names(dataset: Path):
    tab, city = fit_slices(["tab", "city"], 2, dataset)
    hashes = hash_strings(pa.array(["home", "search"])).view(np.int64).tolist()
    assert tab == SliceColumn("tab", tuple(hashes), ("home", "search"))
    assert city == SliceColumn("city", (4, 3), ("4", "3"))
    assert city.groups == ("4", "3", "(other)", "(missing)")
    keys, groups = city.table()
    assert dict(zip(keys.tolist(), groups.tolist(), strict=True)) == {4: 0, 3: 1, NULL_KEY: 3}
    assert (keys[1:] > keys[:-1]).all()


def test_they_survive_a_file(dataset: Path, tmp_path: Path):
    slices = fit_slices(["tab", "city"], 10, dataset)
    save_slices(slices, tmp_path / "run")
    assert load_slices(tmp_path / "run") == slices
    with pytest.raises(DatasetError, match="cannot read the slices"):
        load_slices(tmp_path / "elsewhere")


def test_a_column_without_counted_values_is_refused_with_those_that_have_some(dataset: Path):
    with pytest.raises(
        ConfigError, match=r"evaluation.slices: column 'x' .*choose one of tab, city"
    ):
        fit_slices(["x"], 10, dataset)
    with pytest.raises(DatasetError, match="no column 'tabb'"):
        fit_slices(["tabb"], 10, dataset)


def test_no_slices_need_no_dataset():
    assert fit_slices([], 10, "/nowhere") == ()
