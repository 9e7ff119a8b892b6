"""A cluster on this machine: S3, MLflow, Ray on three nodes; one is killed in the middle of it all.

python -m jobs.cluster_demo [--rows 200000] [--epochs 3] [--keep FOLDER]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.common import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.cluster_demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=120_000, help="training rows")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="where logs stay; absent = removed at the end"
    )
    args = parser.parse_args(arguments)
    return run_job(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Plays the demo and prints its story."""
    # Imported late: --help answers at once.
    from pipeline.submission.cluster_demo import run_demo

    root, began = Path(__file__).parents[1], time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
        run_demo(root, args.keep, tell, args.rows, args.epochs)
    else:
        # A short path: Ray's sockets lie in it.
        with tempfile.TemporaryDirectory(prefix="ple-", dir="/tmp") as folder:
            run_demo(root, Path(folder), tell, args.rows, args.epochs)
    tell("done; every process has been ended")


if __name__ == "__main__":
    sys.exit(main())
