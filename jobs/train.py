"""Trains one experiment on Ray workers and registers its best weights as a model version.

python -m jobs.train --config configs/demo.yaml [section.key=value …] [--summary FILE]
python -m jobs.train --config configs/demo.yaml --resume [RUN_ID]
python -m jobs.train --config configs/demo.yaml --init-from models:/demo@champion
python -m jobs.train --config configs/demo.yaml --plan-only [--workers 8] [--workers-per-node 4]
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.common import add_config_arguments, run_job
from jobs.plan_arguments import add_plan_arguments, check_plan_arguments, show_plan, with_profile
from jobs.summary import check_summary, write_summary
from pipeline.config import load_experiment, resolved_yaml
from pipeline.console import RunConsole, budget_line, metric_table


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    return run_job(lambda: train(args))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the process where it says what cannot be."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    add_config_arguments(parser)
    add_plan_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_ID",
        help="go on with a run that was stopped or killed; without an id with the newest one",
    )
    parser.add_argument(
        "--init-from",
        metavar="SOURCE",
        help="begin a new run with the weights of models:/NAME/VERSION, models:/NAME@ALIAS, the id "
        "of a run under storage.path, or the folder of a checkpoint",
    )
    args = parser.parse_intermixed_args(arguments)
    if args.resume and "=" in args.resume:  # a setting that follows --resume, and no run
        args.overrides, args.resume = [args.resume, *args.overrides], ""
    check_plan_arguments(parser, args)
    return args


def train(args: argparse.Namespace) -> None:
    """Runs the job with parsed arguments."""
    experiment = with_profile(load_experiment(args.config, args.overrides), args)
    if args.print_config:
        print(resolved_yaml(experiment), end="")
        return
    check_summary(args.summary)
    if args.plan_only:
        show_plan(experiment, args)
        return
    # Imported late: --print-config and a wrong config answer at once.
    from pipeline.registry.client import score_rows
    from pipeline.registry.uris import TrackingError
    from pipeline.run import train_and_register

    console = RunConsole()
    outcome = train_and_register(experiment, console, args.resume, args.init_from)
    write_summary(args.summary, outcome.summary())
    result, version = outcome.result, outcome.version
    console.table(
        f"{experiment.name}: weights of step {result.best_step} of {result.steps}",
        *metric_table(result.splits, outcome.manifest.ceilings),
    )
    console.note(
        f"{result.rows_trained:,} rows trained at {result.examples_per_second:,.0f} examples/s, "
        f"{result.data_wait_fraction:.1%} of the time waiting for data"
    )
    console.note("time: " + budget_line(result.time_shares))
    counted = [f"{name} {n:,}" for name, n in result.counters.items() if n and "/" in name]
    if counted:
        console.note("counted while reading, over all passes: " + ", ".join(counted))
    console.note(f"registered {version.name} version {version.version} (@{version.alias})")
    model_uri = f"models:/{version.name}@{version.alias}"
    try:
        scores = score_rows(experiment, model_uri, outcome.examples)
    except TrackingError as error:  # what was to be done is done
        console.note(f"no rows scored: {error}")
    else:
        rows = [[str(i), *(f"{v:.4f}" for v in row)] for i, row in enumerate(scores.to_numpy())]
        console.table(f"raw rows scored by {model_uri}", ["row", *scores.columns], rows)
    console.note(f"open the MLflow page: {outcome.page}")


if __name__ == "__main__":
    sys.exit(main())
