"""Backtest: judges one version or several on days of data, and how far features have drifted.

python -m jobs.evaluate --config configs/demo.yaml --model models:/demo@champion
    [--model models:/demo/7 …] [--output FOLDER] [--summary FILE] [section.key=value …]

Which rows, and what is a day, is in the section `backtest` of the config. Writes backtest.html, and
keeps it with the figures in an MLflow run where mlflow.tracking_uri is set.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import add_config_arguments, run_job
from jobs.summary import check_summary, write_summary
from pipeline.config import ConfigError, load_experiment, resolved_yaml
from pipeline.config.locations import is_uri
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="URI",
        help="models:/NAME/VERSION or models:/NAME@ALIAS; the first one says what labels mean",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="absent = backtest/NAME in storage.path"
    )
    args = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["python", "-m", "jobs.evaluate", *words])
    return run_job(lambda: evaluate(args, command))


def evaluate(args: argparse.Namespace, command: str) -> None:
    """Runs the job with parsed arguments."""
    experiment = load_experiment(args.config, args.overrides)
    if args.print_config:
        print(resolved_yaml(experiment), end="")
        return
    check_summary(args.summary)
    # Imported late: --print-config and a wrong config answer at once.
    from pipeline.backtest.backtest import backtest
    from pipeline.backtest.report import PAGE, show, track, write_page

    if args.output is None and is_uri(experiment.storage.path):
        raise ConfigError("--output: name a folder here; storage.path lies in an object store")
    page = (args.output or Path(experiment.storage.path) / "backtest" / experiment.name) / PAGE
    check_summary(page)
    console = RunConsole()
    found = backtest(experiment, args.model, console)
    write_summary(args.summary, found.summary())
    write_page(found, experiment, command, page)
    show(found, experiment.backtest, console)
    console.note(f"page: {page}")
    if experiment.mlflow.tracking_uri is not None:
        console.note(f"MLflow run {track(found, experiment, page)}")


if __name__ == "__main__":
    sys.exit(main())
