"""Compares a version with the champion on the same rows and, if every rule holds, promotes it.

python -m jobs.promote --config configs/demo.yaml --version 7 [--model NAME] [--dry-run]
    [--summary FILE] [section.key=value …]
python -m jobs.promote --config configs/demo.yaml --rollback [--model NAME]

Rules and rows are in the section `promotion` of the config. Exit status: 0 promoted (with
--dry-run: every rule holds), 1 rejected or refused, and nothing moved.
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.common import add_config_arguments, run_job
from jobs.summary import check_summary, write_summary
from pipeline.config import load_experiment, resolved_yaml
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.promote", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="registered model; absent = the config's")
    parser.add_argument("--version", metavar="V", help="the candidate: a number or an alias")
    parser.add_argument(
        "--rollback", action="store_true", help="move the champion back to the previous version"
    )
    parser.add_argument("--dry-run", action="store_true", help="compare and judge, write nothing")
    parser.add_argument(
        "--take-over",
        metavar="TOKEN",
        help="remove the lock that a dead promotion left behind; the message about it says TOKEN",
    )
    args = parser.parse_args(arguments)
    if not args.print_config:
        if args.rollback == (args.version is not None):
            parser.error("give either --version V or --rollback")
        if args.dry_run and (args.rollback or args.take_over):
            parser.error("--dry-run moves nothing: no --rollback, no --take-over")
        if args.rollback and args.summary is not None:
            parser.error("--summary has no effect with --rollback")
    return run_job(lambda: promote_version(args))


def promote_version(args: argparse.Namespace) -> None:
    """Runs the job with parsed arguments."""
    experiment = load_experiment(args.config, args.overrides)
    if args.print_config:
        print(resolved_yaml(experiment), end="")
        return
    check_summary(args.summary)
    # Imported late: --print-config and a wrong config answer at once.
    from pipeline.promotion.promote import judge_version, move_champion, withdraw_champion

    console = RunConsole()
    champion = experiment.promotion.champion
    if args.rollback:
        name, restored, withdrawn = withdraw_champion(experiment, args.model, args.take_over)
        console.note(f"{name}: @{champion} is version {restored} again, {withdrawn} is withdrawn")
        return
    judgement = judge_version(experiment, args.version, console, args.model, args.dry_run)
    write_summary(args.summary, judgement.summary() | {"promoted": False})
    if args.dry_run and judgement.passed:
        console.note("every rule holds; a dry run, so nothing was moved")
        return
    move_champion(experiment, judgement, args.take_over)
    write_summary(args.summary, judgement.summary() | {"promoted": True})
    candidate = judgement.comparison.candidate
    console.note(f"{judgement.model}: @{champion} is version {candidate.version} now")


if __name__ == "__main__":
    sys.exit(main())
