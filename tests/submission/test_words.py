"""Command lines as they must be on the cluster, and what is refused before anything is sent."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.submission.errors import SubmissionError
from pipeline.submission.secrets import parse_environment
from pipeline.submission.words import JobCommand, command_on_cluster, known_jobs

ROOT = Path(__file__).parents[2]
CLUSTER = "http://head.example:8265"
SHARED = ("data.path=s3://b/data", "storage.path=/shared/runs")
JOBS = ["prepare", "train"]


def command(job: str, *words: str, address: str = CLUSTER) -> JobCommand:
    return command_on_cluster(job, words, address, ROOT, JOBS)


def demo(*words: str, address: str = CLUSTER) -> JobCommand:
    return command("train", "--config", "configs/demo.yaml", *words, address=address)


def test_the_jobs_are_those_with_a_main() -> None:
    jobs = known_jobs(ROOT / "jobs")
    assert {"train", "prepare", "compare", "tune", "benchmark"} <= set(jobs)
    assert not {"submit", "common", "plan_arguments", "__init__"} & set(jobs)


def test_a_job_joins_the_cluster_it_runs_on() -> None:
    found = demo("--profile", *SHARED, "train.epochs=2")
    expected = ("--config", "configs/demo.yaml", "--profile", "ray.address=auto", *SHARED)
    assert found.words == (*expected, "train.epochs=2")
    assert found.experiment is not None
    assert found.experiment.ray.address == "auto"
    assert found.experiment.train.epochs == 2


def test_joining_goes_behind_the_config_where_no_override_is_given(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    text = (ROOT / "configs/demo.yaml").read_text().replace("path: data/clicklog", "path: s3://b/d")
    config.write_text(text + "\nstorage: {path: /shared}\n")
    found = command("train", f"--config={config}", "--profile")
    assert found.words == ("--config=submitted/x.yaml", "ray.address=auto", "--profile")
    assert found.sent == {"submitted/x.yaml": config}


def test_a_job_without_a_config_joins_too() -> None:
    words = ("--model", "models:/m/1", "--tracking-uri", "http://m:5000", "--resume")
    found = command_on_cluster("score", words, CLUSTER, ROOT, ["score"])
    assert found.words == (*words[:4], "ray.address=auto", "--resume")
    with pytest.raises(SubmissionError, match="--tracking-uri: http://localhost:5 is this machine"):
        command("train", "--tracking-uri=http://localhost:5")
    with pytest.raises(SubmissionError, match=r"--input logs/.*: the job runs on another machine"):
        command("train", "--input", "logs/dt=*/x.parquet")


def test_the_given_address_of_a_cluster_is_refused() -> None:
    with pytest.raises(SubmissionError, match=r"ray\.address: a submitted job joins"):
        demo(*SHARED, "ray.address=10.0.0.1:6379")
    assert demo(*SHARED, "ray.address=auto").words.count("ray.address=auto") == 1


def test_small_files_go_along_under_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "columns.yaml").write_text(f"name: {name}\n")
    first, second = (str(tmp_path / name / "columns.yaml") for name in "ab")
    found = command("prepare", "--columns", first, "--more", second, "--output", "s3://b/x")
    places = ("submitted/columns.yaml", "submitted/columns-2.yaml")
    assert found.words == ("--columns", places[0], "--more", places[1], "--output", "s3://b/x")
    assert found.sent == {places[0]: Path(first), places[1]: Path(second)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clicklog", "--output", "data/x"), "--output data/x: the job runs on another machine"),
        (("clicklog", "--output=data/x"), "--output data/x: the job runs on another machine"),
        (("table", "--source", "configs"), "--source configs: the job runs on another machine"),
        (("table", "--source", "s3://u:p@b/x"), r"'s3://\*\*\*@b/x' holds user and password"),
        (("x", "--key", "AKIAABCDEFGHIJKLMNOP"), "holds an access key"),
    ],
)
def test_what_only_this_machine_can_see_is_refused(words: Sequence[str], message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        command("prepare", *words)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("storage.path=/shared",), "data.path: 'data/clicklog' is relative"),
        (("data.path=s3://b/d",), "storage.path: 'runs' is relative"),
        ((*SHARED, "mlflow.tracking_uri=sqlite:///runs/m.db"), "mlflow.tracking_uri: .*relative"),
        ((*SHARED, "mlflow.tracking_uri=http://localhost:5000"), "this machine seen from itself"),
        ((*SHARED, "mlflow.tracking_uri=http://u:p@m:5000"), "holds user and password"),
    ],
)
def test_an_experiment_only_this_machine_can_run_is_refused(
    overrides: Sequence[str], message: str
) -> None:
    with pytest.raises(SubmissionError, match=message) as refused:
        demo(*overrides)
    assert "u:p" not in str(refused.value)


def test_a_server_on_this_machine_is_fine_for_a_cluster_on_it() -> None:
    address = "http://127.0.0.1:8265"
    assert demo(*SHARED, "mlflow.tracking_uri=http://127.0.0.1:5000", address=address)
    assert demo(*SHARED, "mlflow.tracking_uri=sqlite:////shared/mlflow.db")


def test_a_wrong_setting_is_told_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"unknown key train\.epoch; nearest valid key: epochs"):
        demo(*SHARED, "train.epoch=2")
    with pytest.raises(SubmissionError, match="no job 'trian'; the jobs are prepare, train"):
        command("trian")


def test_a_secret_in_a_file_that_would_be_sent_is_refused(tmp_path: Path) -> None:
    columns = tmp_path / "columns.yaml"
    columns.write_text("source: s3://user:pass@bucket/x\n")
    with pytest.raises(SubmissionError, match=r"submitted/columns\.yaml holds user and password"):
        command("prepare", "table", "--columns", str(columns), "--output", "s3://b/x")


def test_variables_hold_no_secrets_but_may_name_their_files() -> None:
    words = ["NCCL_DEBUG=INFO", "MLFLOW_TRACKING_TOKEN_FILE=/run/secrets/t", "A=b=c"]
    assert parse_environment(words)["A"] == "b=c"
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "api_key"):
        with pytest.raises(SubmissionError, match=f"--env {name}: values of variables") as refused:
            parse_environment([f"{name}=planted"])
        assert "planted" not in str(refused.value)
    with pytest.raises(SubmissionError, match="--env PROXY holds user and password"):
        parse_environment(["PROXY=http://u:p@proxy"])
    with pytest.raises(SubmissionError, match="write it as NAME=VALUE"):
        parse_environment(["NAME"])
