"""data.splits: the days a range stands for, and settings that contradict each other."""

from datetime import date
from typing import Any

import pytest

from pipeline.config import ConfigError, Experiment, resolved_yaml
from pipeline.config.load import parse_experiment, with_absolute_paths


def experiment(train: dict[str, Any], **data: Any) -> Experiment:
    splits = {"train": train, "valid": {"files": "valid"}}
    return parse_experiment(
        {
            "name": "unit",
            "data": {"path": "logs", "splits": splits, **data},
            "features": {"numeric": [{"name": "age"}]},
            "tasks": [{"name": "click"}],
            "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [4]}]},
        }
    )


DATED = {"files": "dt={date}/*.parquet", "first_date": "2026-02-27", "last_date": "2026-03-02"}


def test_a_range_holds_both_ends_and_leaves_out_what_it_is_told_to() -> None:
    splits = experiment({**DATED, "skip_dates": ["2026-02-28"]}).data.splits
    assert splits is not None
    assert splits.train.days == [date(2026, 2, 27), date(2026, 3, 1), date(2026, 3, 2)]
    assert splits.valid.days == []
    assert list(splits.by_name) == ["train", "valid"]


def test_what_is_printed_loads_back() -> None:
    import yaml

    first = experiment(DATED, date_format="%Y%m%d")
    assert parse_experiment(yaml.safe_load(resolved_yaml(first))) == first


def test_uris_stay_and_local_paths_become_absolute() -> None:
    there = experiment({"files": "train"}, path="s3://bucket/logs?scheme=http")
    assert with_absolute_paths(there).data.path == "s3://bucket/logs?scheme=http"
    assert with_absolute_paths(experiment({"files": "train"})).data.path.startswith("/")


@pytest.mark.parametrize(
    ("train", "data", "expected"),
    [
        ({"files": []}, {}, "at least 1 item"),
        ({"files": ""}, {}, "an empty name"),
        ({"files": "../x"}, {}, r"without `\.\.`"),
        ({"files": "a/{date}"}, {}, "needs first_date and last_date"),
        ({**DATED, "files": "all"}, {}, "no effect on 'all'"),
        ({"files": "{date}", "first_date": "2026-01-01"}, {}, "both first_date and last_date"),
        ({**DATED, "last_date": "2026-02-01"}, {}, "2026-02-27 comes after last_date 2026-02-01"),
        ({**DATED, "skip_dates": ["2026-04-01"]}, {}, "2026-04-01 is outside"),
        ({"files": "x", "skip_dates": ["2026-04-01"]}, {}, "`skip_dates` has an effect with"),
        (
            {**DATED, "last_date": "2026-02-27", "skip_dates": ["2026-02-27"]},
            {},
            "skip_dates leaves no day",
        ),
        ({"files": "x"}, {"date_format": "%Y"}, "`date_format` has an effect with"),
        (DATED, {"date_format": "YYYY"}, "needs the fields of strftime"),
        ({"files": "s3://other/x"}, {"path": "s3://bucket/x"}, "not on the file system of data"),
        ({"files": "s3://bucket/x"}, {}, "not on the file system of data"),
        ({"files": "x"}, {"path": "s3://"}, "names no bucket"),
        ({"files": "x", "form": 1}, {}, "unknown key data.splits.train.form"),
    ],
)
def test_contradictions_are_named(
    train: dict[str, Any], data: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        experiment(train, **data)


def test_a_refused_location_is_shown_without_its_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        experiment({"files": "s3://AKIA1:secret@other/x"}, path="s3://AKIA1:secret@bucket/x")
    assert "other" in str(caught.value)
    assert "secret" not in str(caught.value)
