"""Pieces of work and identities."""

from dataclasses import replace

import pytest

from pipeline.config import ConfigError
from pipeline.config.scoring_job import load_scoring
from pipeline.data.storage import open_store
from pipeline.scoring.inputs import InputFile, Inputs
from pipeline.scoring.plan import JobIdentity, WorkItem, digest_of, plan_items


def inputs(*groups):
    files = [InputFile(f"{n}.parquet", 100, 7, rows) for n, rows in enumerate(groups)]
    return Inputs(open_store("/data"), tuple(files))


def test_files_are_cut_at_row_groups():
    items = plan_items(inputs((40, 60, 1, 0), (), (0,), (300, 5), (100,)), 100)
    cut = [(i.path[0], i.first_group, i.stop_group, i.first_row, i.rows) for i in items]
    assert cut == [
        ("0", 0, 2, 0, 100),
        ("0", 2, 4, 100, 1),
        ("3", 0, 1, 0, 300),
        ("3", 1, 2, 300, 5),
        ("4", 0, 1, 0, 100),
    ]
    assert [item.number for item in items] == [0, 1, 2, 3, 4]
    assert [WorkItem.parse(item.text()) for item in items] == items


def test_what_makes_another_job():
    job = JobIdentity("models:/m/1", "abc", "/data", {"a": (1, 2, 3)}, {"keep": ["x"]})
    assert JobIdentity.parse(job.tree()) == job
    assert job.differences(job) == []
    others = {
        "the model was models:/m/1, now it is models:/m/2": replace(job, model="models:/m/2"),
        "models:/m/1 is another artifact": replace(job, artifact="abd"),
        "scoring.keep was ['x'], now it is None": replace(job, options={"keep": None}),
        "the input was /data, now it is /logs": replace(job, folder="/logs"),
        "input file a has changed": replace(job, files={"a": (1, 2, 4)}),
        "input file b is new": replace(job, files={"a": (1, 2, 3), "b": (1, 1, 1)}),
        "input file a is gone (and 1 more)": replace(job, files={"c": (1, 1, 1)}),
    }
    for words, other in others.items():
        assert words in "; ".join(other.differences(job))
        assert other.token != job.token
    assert len({other.token for other in others.values()}) == len(others)


def test_an_artifact_is_known_by_its_small_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.json").write_text("1")
    first = digest_of(tmp_path)
    assert digest_of(tmp_path) == first
    (tmp_path / "a/b.json").write_text("2")
    assert digest_of(tmp_path) != first


def test_settings_without_an_experiment():
    settings = load_scoring(["scoring.keep=[row]", "ray.cpus_per_worker=2"])
    assert settings.scoring.keep == ["row"]
    for override, words in {
        "scoring.keeps=[row]": "nearest valid key: keep",
        "scoring.keep=[row, row]": "keep: column row stands twice",
        "scoring.partition_by=[a, a]": "partition_by: column a stands twice",
        "scoring.actors=0": "scoring.actors",
        "data.path=x": "unknown key data",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_scoring([override])
