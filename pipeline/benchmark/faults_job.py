"""A training job as a user starts it, watched from outside by what it leaves on the disk."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.benchmark.faults_audit import TrialError
from pipeline.benchmark.faults_plan import Fault, uncommitted
from pipeline.cluster.run_file import FILE, last_checkpoint

# What is drawn, and when that is:
#   starting     the run is open in MLflow
#   training     the checkpoint of the step drawn is committed
#   committing   a checkpoint's folder has no marker yet
#   scoring      the last checkpoint is committed
#   registering  Ray Train has ended
PHASES = ("starting", "training", "committing", "scoring", "registering")
_POLL = 0.01
_LONGEST = 900.0
_PLACE = re.compile(r"worker (\d+) was last at: ([^;\n]*)")


class Job:
    """``python -m jobs.train`` as a process; may be started again with ``--resume``.

    Args:
        folder: takes its storage and its output.
        config: the experiment's file.
        environment: variables besides those of this process.
        steps: of the whole run.
    """

    def __init__(
        self, folder: Path, config: Path, environment: Mapping[str, str], steps: int
    ) -> None:
        self.folder, self._config, self._steps = folder, config, steps
        self._environment = dict(environment)
        self.storage, self._output = folder / "runs", folder / "output.log"
        self._summary = folder / "summary.json"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> None:
        command = [sys.executable, "-m", "jobs.train", "--config", str(self._config)]
        command += [f"storage.path={self.storage}", "--summary", str(self._summary), *words]
        with self._output.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[2],
                env=os.environ | self._environment,
                stdout=log,
                stderr=log,
            )

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "start() comes first"
        return self._process

    @property
    def run_folder(self) -> Path | None:
        """None until the run is open."""
        found = [path.parent for path in self.storage.glob(f"*/{FILE}")]
        return found[0] if found else None

    @property
    def summary(self) -> dict[str, Any]:
        """What the job wrote at its end."""
        tree: dict[str, Any] = json.loads(self._summary.read_text())
        return tree

    def wait_for(self, fault: Fault) -> bool:
        """Returns at the fault's moment; False = the job ended before."""
        deadline = time.monotonic() + _LONGEST
        seen_ray = False
        while self.process.poll() is None:
            folder = self.run_folder
            if folder is not None:
                seen_ray |= (folder / "ray").exists()
                if self._is_moment(fault, folder, seen_ray):
                    time.sleep(fault.delay)
                    return self.process.poll() is None
            if time.monotonic() > deadline:
                self.process.kill()
                raise TrialError(f"{fault.moment} never came: {self.last_words()}")
            time.sleep(_POLL)
        return False

    def end(self) -> int:
        """The exit status. Raises TrialError where it takes too long."""
        try:
            return self.process.wait(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            raise TrialError(f"the job hangs: {self.last_words()}") from None

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def notes(self) -> list[str]:
        """How it went on, and where workers were last heard of before."""
        text = self._output.read_text(errors="replace")
        told = [line for line in text.splitlines() if line.startswith(("going on", "restart "))]
        places = [f"worker {rank}: {place}" for rank, place in _PLACE.findall(text)]
        return [line.split(":")[0] for line in told] + places

    def last_words(self) -> str:
        return self._output.read_text(errors="replace")[-1500:]

    def _is_moment(self, fault: Fault, folder: Path, seen_ray: bool) -> bool:
        if fault.phase == "starting":
            return True
        if fault.phase == "registering":
            return seen_ray and not (folder / "ray").exists()
        if fault.phase == "committing":
            numbers = [int(f.name.partition("-")[2]) for f in uncommitted(folder / "checkpoints")]
            return any(number >= fault.step for number in numbers)
        wanted = self._steps if fault.phase == "scoring" else fault.step
        return (last_checkpoint(str(folder)) or 0) >= wanted
