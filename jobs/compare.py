"""Compares kinds of models on one dataset: equal data, equal budgets, several seeds, intervals.

python -m jobs.compare --config configs/demo.yaml --kinds single_task,mmoe,ple --seeds 5
    [--budget parameters|flops|none] [--search-lr N] [--output FOLDER] [--summary FILE]
    [section.key=value …]

What is done is kept in the output folder; the same command goes on where it stopped.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from jobs.common import add_config_arguments, run_job
from jobs.summary import check_summary, write_summary
from pipeline.config import load_experiment, resolved_yaml
from pipeline.config.model import Kind
from pipeline.console import RunConsole

_DEFAULT_KINDS = "single_task,shared_bottom,mmoe,cgc,ple"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.compare", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--kinds",
        default=_DEFAULT_KINDS,
        help=f"kinds of model, with commas between: {', '.join(get_args(Kind))}; "
        f"absent = {_DEFAULT_KINDS}",
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind; absent = 5")
    parser.add_argument(
        "--budget",
        choices=("parameters", "flops", "none"),
        default="parameters",
        help="what every kind has as much of as the config's model, by its expert widths; "
        "absent = parameters",
    )
    parser.add_argument(
        "--search-lr",
        type=int,
        default=0,
        metavar="N",
        help="learning rates tried for each kind, chosen on validation; absent = the config's",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="absent = STORAGE/compare/NAME"
    )
    args = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["python", "-m", "jobs.compare", *words])
    return run_job(lambda: compare_kinds(args, command))


def compare_kinds(args: argparse.Namespace, command: str) -> None:
    """Runs the job with parsed arguments."""
    experiment = load_experiment(args.config, args.overrides)
    if args.print_config:
        print(resolved_yaml(experiment), end="")
        return
    check_summary(args.summary)
    from pipeline.comparison.compare import Request, check_request, compare, raise_failed

    request = Request(
        kinds=tuple(kind.strip() for kind in args.kinds.split(",") if kind.strip()),
        seeds=args.seeds,
        budget=args.budget,
        search_points=args.search_lr,
        output=args.output,
        command=command,
    )
    check_request(request, get_args(Kind))
    comparison = compare(experiment, request, RunConsole())
    write_summary(args.summary, comparison.summary())
    raise_failed(comparison)


if __name__ == "__main__":
    sys.exit(main())
