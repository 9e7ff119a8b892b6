"""``--plan-only`` and ``--profile`` of jobs.train."""

import argparse

from jobs.summary import write_summary
from pipeline.config import Experiment
from pipeline.config.load import with_absolute_paths
from pipeline.console import RunConsole

_PROFILED_STEPS = 5


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """``--plan-only`` with its workers, ``--profile``."""
    parser.add_argument(
        "--plan-only",
        action="store_true",
        help="show where tables would go, memory and predicted step, and exit",
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="plan for this many; absent = train.workers"
    )
    parser.add_argument(
        "--workers-per-node", type=_count, metavar="N", help="of these on a node; absent = all"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help=f"store a profiler trace of train.profile_steps ({_PROFILED_STEPS}) with the run",
    )


def with_profile(experiment: Experiment, args: argparse.Namespace) -> Experiment:
    """The experiment with the steps that ``--profile`` traces."""
    if not args.profile or experiment.train.profile_steps is not None:
        return experiment
    train = experiment.train.model_copy(update={"profile_steps": _PROFILED_STEPS})
    return experiment.model_copy(update={"train": train})


def check_plan_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the job if one of the arguments would have no effect."""
    if not args.plan_only and (args.workers or args.workers_per_node):
        parser.error("--workers and --workers-per-node go with --plan-only; set train.workers=N")
    if args.plan_only and args.profile:
        parser.error("--profile has no effect with --plan-only")


def show_plan(experiment: Experiment, args: argparse.Namespace) -> None:
    """Plans without workers and prints the plan."""
    from pipeline.training.plan_only import plan_experiment, shown_plan

    experiment = with_absolute_paths(experiment)
    plan, cost = plan_experiment(experiment, args.workers, args.workers_per_node)
    console = RunConsole()
    for shown in shown_plan(plan, cost):
        console.table(shown.title, shown.columns, shown.rows)
    write_summary(args.summary, plan.to_tree())


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count
