"""Which files a location names."""

import pytest

from pipeline.scoring.errors import ScoringError
from pipeline.scoring.inputs import list_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("logs/dt=1/a.parquet", "logs/dt=2/a.parquet", "logs/dt=2/_tmp/x", "b.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["{0}", "{folder}/{0}", "file://{folder}/{0}"])
@pytest.mark.parametrize(
    ("location", "root", "paths", "deep"),
    [
        ("logs", "logs", ["dt=1/a.parquet", "dt=2/a.parquet"], True),
        ("logs/dt=2/a.parquet", "logs/dt=2", ["a.parquet"], False),
        ("logs/dt=*/*.parquet", "logs", ["dt=1/a.parquet", "dt=2/a.parquet"], False),
        ("logs/**", "logs", ["dt=1/a.parquet", "dt=2/a.parquet"], True),
        ("b.parquet", "", ["b.parquet"], False),
        ("*.parquet", "", ["b.parquet"], False),
    ],
)
def test_files_folders_and_patterns(folder, form, location, root, paths, deep):
    found = list_files(form.format(location, folder=folder))
    assert found.store.root == str(folder / root)
    assert [file.path for file in found.files] == paths
    assert found.deep == deep


@pytest.mark.parametrize("location", ["nowhere", "logs/*.csv", "logs/dt=2/_tmp"])
def test_nothing_there(folder, location):
    (folder / "logs/dt=2/_tmp/x").unlink()
    with pytest.raises(ScoringError, match=f"nothing is called .*{location[:4]}.*, or the folder"):
        list_files(location)
