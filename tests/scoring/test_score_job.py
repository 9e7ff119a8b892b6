"""`jobs.score` as a user starts it, on Ray: killed in the middle, started again."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from job_runner import ROOT, run_job
from scored_output import output_rows, visible, write_logs

from jobs.score import main


@pytest.mark.slow
def test_killed_and_started_again_scores_every_row_once(scoring, tmp_path):
    rows = write_logs(tmp_path / "logs", group_rows=20)
    options = {"keep": ["row"], "rows_per_file": 20, "compression": "snappy"}
    scoring.score(tmp_path / "logs", tmp_path / "whole", **options)
    output, working = tmp_path / "scores", tmp_path / "_scores.unfinished"
    command = [
        "jobs.score",
        *("--model", "models:/shop@champion", "--tracking-uri", scoring.tracking_uri),
        *("--input", str(tmp_path / "logs"), "--output", str(output), "--resume"),
        *("--summary", str(tmp_path / "summary.json")),
        *("scoring.keep=[row]", "scoring.rows_per_file=20", "scoring.compression=snappy"),
        *("scoring.actors=2",),
    ]
    killed = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stderr=subprocess.PIPE,
    )
    _wait_for_records(working / "_scoring", 3, killed)
    actors = [p for p in psutil.Process(killed.pid).children(True) if "MapWorker" in _title(p)]
    assert len(actors) == 2
    actors[0].kill()
    done = _wait_for_records(working / "_scoring", 8, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not output.exists()

    run_job(*command)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rows"], summary["pieces"], summary["files"]) == (1200, 60, 60)
    assert done <= summary["pieces_before"] < 60
    found = output_rows(output)
    assert found["row"].to_pylist() == rows["row"].to_pylist()
    assert found.equals(output_rows(tmp_path / "whole"))
    assert visible(output) == visible(tmp_path / "whole")
    assert not working.exists()
    # Nothing is left to do: no Ray is started for it.
    assert main(command[1:]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --config FILE or --tracking-uri URI"),
        (["--config", "a", "--tracking-uri", "b"], "give --config FILE or --tracking-uri URI"),
        (["--tracking-uri", "b", "--resume", "--overwrite"], "either --resume or --overwrite"),
        (["--tracking-uri", "b", "scoring.rows=3"], "nearest valid key: "),
    ],
)
def test_the_command_line_is_checked(arguments, says, capsys):
    start = ["--model", "models:/shop/1", "--input", "a", "--output", "b"]
    assert main([*start, *arguments]) == 1
    assert says in capsys.readouterr().err


def _wait_for_records(folder: Path, count: int, process: subprocess.Popen[bytes]) -> int:
    """Until so many pieces are recorded; how many are."""
    for _ in range(20_000):
        records = len(list(folder.glob("item-*.json"))) if folder.is_dir() else 0
        if records >= count:
            return records
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    raise AssertionError("nothing was scored")


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
