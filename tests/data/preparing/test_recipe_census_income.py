"""The Census-Income recipe on the real files, and its protocol on small ones."""

import bz2
import gzip
import io
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes import census_income as module
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.census_income import HEADER, NUMERIC, census_income
from pipeline.data.preparing.shards import arrow_schema

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "census-income-kdd"


def read(recipe: Recipe) -> dict[str, pa.Table]:
    batches: dict[str, list[pa.RecordBatch]] = {}
    for split, batch in recipe.read():
        batches.setdefault(split, []).append(batch)
    schema = arrow_schema(recipe.columns)
    return {split: pa.Table.from_batches(b, schema) for split, b in batches.items()}


def line(number: int) -> str:
    values = {name: f"value of {name}" for name in HEADER}
    values |= {name: str(number) for name in NUMERIC}
    values |= {
        "age": str(number),
        "marital_stat": "Never married" if number % 3 == 0 else "Divorced",
        "country_self": "?",
        "instance_weight": "1032.38",
        "income_50k": "50000+." if number % 4 == 0 else "- 50000.",
    }
    return ", ".join(values[name] for name in HEADER)


def write_files(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    train, test = ("\n".join(line(n) for n in part) for part in (range(40), range(100, 111)))
    (folder / "census-income.data.bz2").write_bytes(bz2.compress(train.encode()))
    (folder / "census-income.test.gz").write_bytes(gzip.compress(test.encode() + b"\n"))


def test_columns_labels_and_missing_values(tmp_path: Path) -> None:
    write_files(tmp_path)
    recipe = census_income(tmp_path)
    roles = [column.role for column in recipe.columns]
    assert (roles.count("categorical"), roles.count("numeric")) == (31, 7)
    names = {column.name for column in recipe.columns}
    assert not names & {"education", "marital_stat"}, "they give the labels away"
    assert [task.name for task in recipe.tasks] == ["income_50k", "never_married"]
    train = read(recipe)["train"]
    assert train.column("income_50k").to_pylist() == [int(n % 4 == 0) for n in range(40)]
    assert train.column("never_married").to_pylist() == [int(n % 3 == 0) for n in range(40)]
    assert train.column("country_self").null_count == 40
    assert train.column("sex")[0].as_py() == "value of sex"
    assert train.column("instance_weight")[0].as_py() == pytest.approx(1032.38)
    assert train.column("age").to_pylist() == [float(n) for n in range(40)]


def test_the_official_test_file_is_halved_by_the_seeded_permutation(tmp_path: Path) -> None:
    write_files(tmp_path)
    tables = read(census_income(tmp_path))
    order = np.random.default_rng(1).permutation(11)
    assert tables["valid"].column("age").to_pylist() == sorted(100.0 + order[:5])
    assert tables["test"].column("age").to_pylist() == sorted(100.0 + order[5:])


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no census-income\.data \(also looked for"):
        census_income(tmp_path)


def test_the_archive_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, archive, asked = io.BytesIO(), io.BytesIO(), []
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name in ("census-income.data", "census-income.test"):
            member = tarfile.TarInfo(name)
            content = (line(1) + "\n").encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("census.tar.gz", inner.getvalue())

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(archive.getvalue())

    monkeypatch.setattr(module.urllib.request, "urlopen", answer)
    for _ in range(2):
        folder = module.download(tmp_path / "downloads")
    assert asked == [module.ARCHIVE]
    assert len(read(census_income(folder))["train"]) == 1


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> io.BytesIO:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)
    with pytest.raises(DatasetError, match=r"cannot download .*no route to host.*--source"):
        module.download(tmp_path / "downloads")


@pytest.mark.slow
def test_the_real_files_have_the_published_counts() -> None:
    if not REAL.is_dir():
        pytest.skip("the Census-Income files are not on this machine")
    tables = read(census_income(REAL))
    assert {s: len(t) for s, t in tables.items()} == {
        "train": 199_523,
        "valid": 49_881,
        "test": 49_881,
    }
    counts = {
        split: tuple(int(np.sum(t.column(c).to_numpy())) for c in ("income_50k", "never_married"))
        for split, t in tables.items()
    }
    assert counts["train"] == (12_382, 86_485)
    assert tuple(np.add(counts["valid"], counts["test"])) == (6_186, 43_143)
    train = tables["train"]
    both = train.column("income_50k").to_numpy() & train.column("never_married").to_numpy()
    assert both.sum() == 1_117
    labels = (train.column(c).to_numpy() for c in ("income_50k", "never_married"))
    assert np.corrcoef(*labels)[0, 1] == pytest.approx(-0.178, abs=5e-4)
