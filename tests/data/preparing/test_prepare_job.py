"""``jobs.prepare`` from the command line: a dataset, a starter experiment, one-line errors."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.prepare import main
from pipeline.config import load_experiment
from pipeline.data.manifest import Column, load_manifest
from pipeline.data.preparing.starter import categorical_feature
from pipeline.data.preparing.statistics import VOCABULARY_LIMIT

ROOT = Path(__file__).parents[3]
DESCRIPTION = """\
name: shop
columns:
  - {name: user, role: categorical, type: int64}
  - {name: tags, role: categorical, separator: "|"}
  - {name: spend, role: numeric}
  - {name: age, role: numeric}
  - {name: click, role: label}
  - {name: seconds, role: label}
  - {name: shown, role: space}
  - {name: importance, role: weight}
sample_weight: importance
tasks:
  - {name: click}
  - {name: time, label: seconds, loss: squared_error, space: shown}
split: {by_cut: {column: user, valid_from: 800, test_from: 900}}
"""


def write_table(folder: Path, click_of_test: int = 1) -> list[str]:
    """A CSV file and its description; returns the job's arguments."""
    lines = ["user,tags,spend,age,click,seconds,shown,importance"]
    for n in range(1000):
        spend = 10_000 + n if n % 4 == 0 else 0
        click = n % 2 if n < 900 else click_of_test * (n % 2)
        lines.append(f"{n},a|b,{spend},{n % 80},{click},{n / 4},1,1.5")
    (folder / "log.csv").write_text("\n".join(lines))
    (folder / "shop.yaml").write_text(DESCRIPTION)
    source, columns = str(folder / "log.csv"), str(folder / "shop.yaml")
    return ["table", "--source", source, "--columns", columns, "--output", str(folder / "shop")]


def test_a_table_becomes_a_dataset_with_a_starter_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary_path = tmp_path / "summary.json"
    assert main([*write_table(tmp_path), "--summary", str(summary_path)]) == 0
    manifest = load_manifest(tmp_path / "shop")
    assert [manifest.rows(s) for s in ("train", "valid", "test")] == [800, 100, 100]

    experiment = load_experiment(tmp_path / "shop" / "experiment.yaml")
    assert experiment.name == "shop"
    assert experiment.data.path == str(tmp_path / "shop")
    assert experiment.data.sample_weight == "importance"
    assert [f.name for f in experiment.features.categorical] == ["user", "tags"]
    spend, age = experiment.features.numeric
    assert (spend.name, spend.transform, age.transform) == ("spend", "log1p", "none")
    assert age.buckets == 32
    assert [(t.name, t.label_column, t.space) for t in experiment.tasks] == [
        ("click", "click", None),
        ("time", "seconds", "shown"),
    ]

    summary = json.loads(summary_path.read_text())
    assert summary["rows"] == {"train": 800, "valid": 100, "test": 100}
    assert summary["digest"] == manifest.digest
    assert summary["labels"]["click"]["train"]["positives"] == 400
    user = summary["hashing"]["user"]
    assert (user["distinct"], user["rows"]) == (800, math.ceil(1 / (1 - 0.8 ** (1 / 799))) + 1)
    assert user["expected_collision_rate"] == pytest.approx(0.2, abs=1e-4)
    assert user["rows_for_1_percent"] == math.ceil(1 / (1 - 0.99 ** (1 / 799))) + 1
    assert summary["warnings"] == []
    printed = capsys.readouterr().out
    assert "1,000 rows in" in printed
    assert "python -m jobs.train --config" in printed


def test_a_split_without_positives_or_rows_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.json"
    arguments = write_table(tmp_path, click_of_test=0)
    assert main([*arguments, "--summary", str(summary)]) == 0
    warning = "task 'click' has no positives among 100 test rows: its AUC is undefined there"
    assert json.loads(summary.read_text())["warnings"] == [warning]
    assert warning in capsys.readouterr().out

    text = (tmp_path / "shop.yaml").read_text().replace("test_from: 900", "test_from: 5000")
    (tmp_path / "shop.yaml").write_text(text)
    assert main([*arguments, "--overwrite", "--summary", str(summary)]) == 0
    found = json.loads(summary.read_text())["warnings"]
    assert found == ["split test has no rows: nothing is evaluated on it"]


def test_an_existing_dataset_is_refused_kept_or_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_table(tmp_path)
    assert main(arguments) == 0
    first = load_manifest(tmp_path / "shop").digest
    write_table(tmp_path, click_of_test=0)

    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'shop'}: already holds a dataset")
    assert error.count("\n") == 1
    assert main([*arguments, "--if-missing"]) == 0
    assert "kept" in capsys.readouterr().out
    assert load_manifest(tmp_path / "shop").digest == first
    assert main([*arguments, "--overwrite"]) == 0
    assert load_manifest(tmp_path / "shop").digest != first


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\n5,a|b,0,5,1,", "\n5,a|b,0,5,2,", "log.csv: row 6, column 'click': 2.0: must be 0 or 1"),
        ("\n5,a|b,0,5,1,", "\n5,a|b,0,5,nan,", "log.csv: row 6, column 'click': nan: must be 0"),
        ("\n5,a|b,0,5,1,", "\n5,a|b,0,5,", "log.csv: line 7 has 7 columns, expected 8"),
        (",click,", ",klick,", "log.csv: has no column 'click' (columns: user, tags,"),
    ],
)
def test_a_bad_source_ends_with_one_line_and_no_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    arguments = write_table(tmp_path)
    text = (tmp_path / "log.csv").read_text()
    assert text.count(old) == 1
    (tmp_path / "log.csv").write_text(text.replace(old, new))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "shop.yaml"]


def test_a_missing_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert main(["census-income", "--source", str(tmp_path), *output]) == 1
    assert "has no census-income.data" in capsys.readouterr().err
    assert main(["kuairand", "--source", str(tmp_path / "none"), *output]) == 1
    assert "expected one file processed_standard" in capsys.readouterr().err
    assert main(["clicklog", "--rows", "0", *output]) == 1
    assert "--rows 0: must be positive" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_clicklog_from_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "log"
    arguments = ["clicklog", "--rows", "3000", "--tasks", "click, convert", "--output", str(output)]
    assert main(arguments) == 0
    manifest = load_manifest(output)
    assert [manifest.rows(s) for s in ("train", "valid", "test")] == [3000, 375, 375]
    assert set(manifest.ceilings["test"]) == {"click", "convert"}
    experiment = load_experiment(output / "experiment.yaml")
    interests = next(f for f in experiment.features.categorical if f.name == "interests")
    assert interests.weights == "interest_weights"
    assert experiment.tasks[1].space == "click"


def test_a_column_of_too_many_ids_gets_a_hashed_starter_feature() -> None:
    seen = {"vocabulary": None, "distinct": VOCABULARY_LIMIT + 1}
    feature = categorical_feature(Column("ad", "categorical", "int64"), seen, weights=None)
    # 1 - (1 - 1/n)^2,000,000 = 20 % for n = 2,000,000 / -ln 0.8, and row 0 for missing ids.
    assert feature == {"name": "ad", "encoder": "hash", "rows": 8_962_842}


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Ten times the rows may add what fills up once: row groups (about 1M rows) and samples."""
    peaks = [_peak_rss_mb(tmp_path, rows) for rows in (200_000, 2_000_000)]
    assert peaks[1] < peaks[0] + 100, f"{peaks} MB"


def _peak_rss_mb(tmp_path: Path, rows: int) -> float:
    script = (
        "import resource, sys\n"
        "from jobs.prepare import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    arguments = ["clicklog", "--rows", str(rows), "--users", "2000", "--items", "1000"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--output", str(tmp_path / str(rows))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])
