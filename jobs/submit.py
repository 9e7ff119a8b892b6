"""Runs a job on a Ray cluster, follows its log and ends with its exit code.

python -m jobs.submit train --address http://HEAD:8265 --config configs/X.yaml [key=value …]
python -m jobs.submit --address http://HEAD:8265 --attach ID | --stop ID

Ctrl-C leaves the job running. Exit status: the job's own; 3 = stopped, the same command with
--resume goes on; 130 = no longer followed, or stopped before anything was saved.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args, words = parser.parse_known_args(arguments)
    if sum(map(bool, (args.job, args.attach, args.stop))) != 1:
        parser.error("name one JOB (train, prepare, …), or give --attach ID or --stop ID")
    if words and args.job is None:
        parser.error(f"unknown arguments: {' '.join(words)}")
    codes: list[int] = []
    return run_job(lambda: codes.append(run(args, words))) or codes[0]


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Submits, attaches or stops; returns the exit code."""
    # Imported late: --help and a wrong command line answer at once.
    from pipeline.submission.client import Cluster
    from pipeline.submission.submit import Options, follow_job, stop_job, submit_job

    if args.stop is not None:
        return stop_job(Cluster(args.address), args.stop)
    if args.attach is not None:
        return follow_job(Cluster(args.address), args.attach)
    options = Options(
        address=args.address,
        environment=tuple(args.env),
        needs=tuple(args.needs),
        install=args.install,
        stop_seconds=args.stop_seconds,
    )
    cluster, job_id = submit_job(args.job, words, options, Path(__file__).parents[1])
    return follow_job(cluster, job_id) if args.follow else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("job", nargs="?", metavar="JOB", help="a job, its own arguments after it")
    parser.add_argument("--address", required=True, metavar="URL", help="the head's dashboard")
    parser.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the log until the job ends (default), or return once it is submitted",
    )
    parser.add_argument("--attach", metavar="ID", help="follow a job submitted before")
    parser.add_argument("--stop", metavar="ID", help="stop a job; returns when it has saved")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="variable; no secrets"
    )
    parser.add_argument(
        "--needs",
        action="append",
        default=[],
        metavar="NAME",
        help="variable (a credential) that the cluster's nodes must set; checked before the start",
    )
    parser.add_argument(
        "--install", choices=("cpu", "cuda"), help="install the locked packages for this job"
    )
    parser.add_argument(
        "--stop-seconds",
        type=int,
        default=600,
        metavar="N",
        help="what a stopped job has to save its checkpoint (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
