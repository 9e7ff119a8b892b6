"""What is sent to a cluster."""

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.registry.provenance import git_tags
from pipeline.submission.client import Cluster, runtime_environment
from pipeline.submission.errors import SubmissionError
from pipeline.submission.expectations import Expectations, read_expectations
from pipeline.submission.package import locked_packages, write_package
from pipeline.submission.words import JobCommand

ROOT = Path(__file__).parents[2]


def test_code_configs_and_named_files_are_sent_and_nothing_else(tmp_path: Path) -> None:
    columns = tmp_path / "columns.yaml"
    columns.write_text("name: x\n")
    command = JobCommand("prepare", (), {"submitted/columns.yaml": columns}, None)
    expectations = Expectations({"torch": "2.13.0"}, ("AWS_PROFILE",))
    package = tmp_path / "package"
    write_package(package, ROOT, command, expectations)
    assert {path.name for path in package.iterdir()} == {
        "ple",
        "pipeline",
        "jobs",
        "configs",
        "pyproject.toml",
        "submitted",
        "submission.json",
        "revision.json",
    }
    assert (package / "submitted/columns.yaml").read_text() == "name: x\n"
    assert (package / "jobs/train.py").read_text() == (ROOT / "jobs/train.py").read_text()
    assert not [path for path in package.rglob("*") if "__pycache__" in path.parts]
    assert read_expectations(package) == expectations


def test_the_packed_code_still_knows_its_revision(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("ple", "pipeline/registry", "jobs", "configs"):
        (project / name).mkdir(parents=True)
    (project / "pyproject.toml").write_text("")
    (project / "pipeline/registry/x.py").write_text("")
    git = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e@x"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    package = tmp_path / "package"
    write_package(package, project, JobCommand("train", (), {}, None), Expectations())
    known = git_tags(project / "pipeline/registry")
    assert known["git.dirty"] == "false"
    assert len(known["mlflow.source.git.commit"]) == 40
    assert git_tags(package / "pipeline/registry") == known
    assert json.loads((package / "revision.json").read_text()) == known


def test_the_lock_is_installed_as_it_stands() -> None:
    pip = locked_packages(ROOT, "cpu")
    assert pip["pip_install_options"] == ["--no-deps"]
    assert "torch==2.13.0" in pip["packages"]
    assert not [line for line in pip["packages"] if line.startswith(("pytest", "fbgemm-gpu=="))]
    environment = runtime_environment(Path("/p"), {"A": "1"}, 90, pip)
    assert environment["env_vars"] == {"A": "1", "RAY_JOB_STOP_WAIT_TIME_S": "90"}
    assert environment["pip"] == pip
    assert "pip" not in runtime_environment(Path("/p"), {}, 90, None)


def test_addresses_that_lead_nowhere_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubmissionError, match="give the dashboard's address"):
        Cluster("head:6379")
    with pytest.raises(SubmissionError, match="leave user and password out"):
        Cluster("http://user:pass@head:8265")
    with pytest.raises(SubmissionError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"):
        Cluster("http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(SubmissionError, match="is not what RAY_ADDRESS says; unset RAY_ADDRESS"):
        Cluster("http://127.0.0.1:9")
