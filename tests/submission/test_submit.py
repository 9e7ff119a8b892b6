"""Jobs on a real Ray head: submitted, failed, left alone, stopped, with nothing secret shown."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from jobs.submit import main
from pipeline.data.manifest import load_manifest
from pipeline.submission.local_cluster import LocalCluster

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def submit(cluster: LocalCluster, *words: str, **environment: str) -> tuple[int, str, str]:
    """``python -m jobs.submit`` as a user runs it: exit code, standard output and error."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.submit", "--address", cluster.address, *words],
        cwd=ROOT,
        env=os.environ | cluster.environment | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def dashboard(cluster: LocalCluster, path: str) -> Any:
    """What the dashboard answers to one who has the token."""
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"Authorization": f"Bearer {token}"}
    answer = requests.get(cluster.address + path, headers=headers, timeout=120)
    answer.raise_for_status()
    return answer.json()


def shown_of(cluster: LocalCluster) -> str:
    """All that the dashboard tells its users about jobs: entry points, environments, logs."""
    jobs = dashboard(cluster, "/api/jobs/")
    ids = [job["submission_id"] for job in jobs]
    return "\n".join(
        json.dumps(t) for t in [jobs, *(dashboard(cluster, f"/api/jobs/{i}/logs") for i in ids)]
    )


def test_a_job_runs_there_and_nothing_secret_is_shown(cluster: LocalCluster, shared: Path) -> None:
    words = ["clicklog", "--rows", "2000", "--seed", "5", "--output", str(shared / "data")]
    code, out, err = submit(
        cluster,
        *("prepare", "--needs", "STORE_SECRET_KEY", "--env", "NOTE=plain", *words),
        AWS_SECRET_ACCESS_KEY="planted-aws-0042",
        MLFLOW_TRACKING_PASSWORD="planted-mlflow-0042",
    )
    assert code == 0, out + err
    assert load_manifest(shared / "data").rows("train") == 2000
    assert out.rstrip().endswith("[exit status 0]")
    assert err.startswith("submitted prepare-")
    shown = shown_of(cluster)
    assert '"NOTE": "plain"' in shown
    assert "--needs" not in shown
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    for secret in ("planted-aws-0042", "planted-mlflow-0042", "node-secret-0042", token):
        assert secret not in shown
        assert secret not in out + err


def test_a_failed_job_gives_its_reason_and_its_exit_code(
    cluster: LocalCluster, shared: Path
) -> None:
    columns = shared / "mine.yaml"
    columns.write_text("name: mine\ncolumns: []\n")
    words = ["table", "--source", str(shared / "absent"), "--columns", str(columns)]
    words += ["--output", str(shared / "out")]
    code, out, err = submit(cluster, "prepare", *words)
    assert code == 1
    assert "\nerror: submitted/mine.yaml" in out
    assert "Traceback" not in out
    assert err.rstrip().endswith("failed with exit status 1")


def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(
    cluster: LocalCluster, shared: Path
) -> None:
    words = ["clicklog", "--rows", "50000000", "--output", str(shared / "big")]
    following = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", "prepare", "--address", cluster.address, *words],
        cwd=ROOT,
        env=os.environ | cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background hands down that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert following.stdout is not None
    while "Running entrypoint" not in (line := following.stdout.readline()):
        assert line, following.communicate()
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=120)
    assert following.returncode == 130
    job_id = told.partition("submitted ")[2].partition(" to ")[0]
    assert f"{job_id} goes on without being followed" in told
    assert f"--stop {job_id}" in told
    assert dashboard(cluster, f"/api/jobs/{job_id}")["status"] == "RUNNING"
    code, _, err = submit(cluster, "--stop", job_id)
    assert (code, err.splitlines()[-1]) == (130, f"{job_id} stopped (exit status 130)")
    assert dashboard(cluster, f"/api/jobs/{job_id}")["status"] == "STOPPED"
    code, out, _ = submit(cluster, "--attach", job_id)
    assert code == 130
    assert "Running entrypoint" in out


def test_another_token_and_an_unknown_job_are_refused_in_one_line(cluster: LocalCluster) -> None:
    code, _, err = submit(cluster, "--stop", "absent-1")
    assert code == 1
    assert "does not stop job absent-1" in err.splitlines()[-1]
    other = {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "f" * 64}
    code, _, err = submit(cluster, "--attach", "x", **other)
    assert code == 1
    assert err.startswith(f"error: {cluster.address} refuses the token")
    assert "f" * 64 not in err


@pytest.mark.parametrize("words", [[], ["train", "--stop", "x"], ["--stop", "x", "--epochs", "2"]])
def test_a_command_line_names_one_thing_to_do(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--address", "http://head:8265", *words])
