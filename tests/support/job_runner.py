"""Runs jobs the way a user does: as processes, from the project's folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_job(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """``python -m …`` with the given words; fails the test with its output unless check=False."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    if check:
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def prepare(output: Path, *arguments: str) -> Path:
    """Prepares a dataset, arguments as on the command line (recipe first)."""
    run_job("jobs.prepare", *arguments, "--output", str(output))
    return output


def train(config: Path, storage: Path, *overrides: str) -> dict[str, Any]:
    """Trains and returns the job's summary."""
    summary = storage / "summary.json"
    run_job(
        "jobs.train",
        "--config",
        str(config),
        "--summary",
        str(summary),
        f"storage.path={storage}",
        *overrides,
    )
    result: dict[str, Any] = json.loads(summary.read_text())
    return result
