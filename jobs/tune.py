"""Searches settings of one experiment: trials on Ray workers, judged on validation, in MLflow.

python -m jobs.tune --config configs/X.yaml [section.key=value …] [--output FOLDER]
    [--summary FILE]

The section `tune` says what is tried. Writes best.yaml, which jobs.train takes. Trials that are
done are kept in the output folder; the same command goes on where it stopped.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import add_config_arguments, run_job
from jobs.summary import check_summary, write_summary
from pipeline.config import load_experiment, resolved_yaml
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.tune", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="absent = STORAGE/tune/NAME")
    args = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["python", "-m", "jobs.tune", *words])
    return run_job(lambda: search(args, command))


def search(args: argparse.Namespace, command: str) -> None:
    """Runs the job with parsed arguments."""
    experiment = load_experiment(args.config, args.overrides)
    if args.print_config:
        print(resolved_yaml(experiment), end="")
        return
    check_summary(args.summary)
    # Imported late: --print-config and a wrong config answer at once.
    from pipeline.tuning.tune import raise_failed, tune

    report = tune(experiment, args.output, command, RunConsole())
    write_summary(args.summary, report.summary())
    raise_failed(report)


if __name__ == "__main__":
    sys.exit(main())
