"""Delivers to MLflow what runs have on disk because MLflow was away. May be repeated at will.

python -m jobs.deliver --run-folder runs/RUN_ID
python -m jobs.deliver --config configs/demo.yaml [section.key=value ...] RUN_ID
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.deliver",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run-folder", metavar="FOLDER", type=Path, help="the run's folder")
    parser.add_argument("--config", metavar="FILE", help="the run's experiment (YAML)")
    parser.add_argument(
        "words", nargs="*", metavar="RUN_ID", help="with --config: overrides, then the run's id"
    )
    args = parser.parse_args(arguments)
    if (args.config is None) == (args.run_folder is None):
        parser.error("give either --run-folder FOLDER, or --config FILE and the run's id")
    if bool(args.words) != (args.config is not None) or (args.words and "=" in args.words[-1]):
        parser.error("--config takes the run's id last; --run-folder takes none")
    return run_job(lambda: deliver(args))


def deliver(args: argparse.Namespace) -> None:
    """Runs the job with parsed arguments."""
    # Imported late: --help and a wrong command line answer at once.
    from pipeline.config import load_experiment
    from pipeline.registry.outbox import local_run_folder
    from pipeline.registry.redelivery import deliver_folder
    from pipeline.registry.uris import tracking_uri

    if args.run_folder is not None:
        print(deliver_folder(args.run_folder.resolve()))
        return
    *overrides, run_id = args.words
    experiment = load_experiment(args.config, overrides)
    print(deliver_folder(local_run_folder(experiment, run_id), tracking_uri(experiment)))


if __name__ == "__main__":
    sys.exit(main())
