"""Runs a submitted job on the cluster: ``python -m pipeline.submission.entry JOB …``.

Checks what the submission expects of the cluster, runs the job in this process, so that a signal
reaches it, and ends the log with its exit status, which Ray does not keep for a stopped job.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.submission.expectations import installed_versions, read_expectations
from pipeline.submission.status import status_line


def main(arguments: Sequence[str] | None = None) -> int:
    job, *words = sys.argv[1:] if arguments is None else arguments
    faults = read_expectations(Path.cwd()).faults(installed_versions(), os.environ)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    status = 1 if faults else _run(f"jobs.{job}", words)
    print(status_line(status), flush=True)
    return status


def _run(module: str, words: Sequence[str]) -> int:
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
