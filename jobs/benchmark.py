"""Measures this project on this machine and prints ratios; run one part at a time.

python -m jobs.benchmark PART [options]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import add_summary_argument, check_summary, run_job, write_summary
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return run_job(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Runs one part and writes its summary."""
    check_summary(args.summary)
    write_summary(args.summary, args.measure(args, RunConsole()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parts = parser.add_subparsers(required=True, metavar="PART")
    memory = parts.add_parser("memory", help="peak memory of preparing and reading, by rows")
    memory.add_argument(
        "--rows", type=int, default=1_000_000, help="train rows of the smaller dataset"
    )
    memory.set_defaults(measure=measure_memory)
    data = parts.add_parser("data", help="the reader against pyarrow, Ray Data and DataLoader")
    data.add_argument("--rows", type=int, default=2_000_000, help="rows of the dataset")
    data.add_argument("--no-rivals", action="store_true", help="leave Ray Data and DataLoader out")
    data.set_defaults(measure=measure_data)
    step = parts.add_parser("step", help="the model step alone, as a share of the FLOP ceiling")
    step.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="intra-op threads")
    step.set_defaults(measure=measure_step)
    train = parts.add_parser("train", help="Parquet to moved weights, against other PLEs")
    train.add_argument("--threads", type=int, default=2, help="intra-op threads of every subject")
    train.add_argument("--census", type=Path, help="a dataset of jobs.prepare census-income")
    train.set_defaults(measure=measure_train)
    balance = parts.add_parser("balance", help="a step of each balancing method, over a plain one")
    balance.add_argument("--threads", type=int, default=1, help="intra-op threads")
    balance.set_defaults(measure=measure_balance)
    for part in (data, step, train, balance):
        part.add_argument("--pairs", type=int, default=5, help="interleaved repetitions")
    for part in parts.choices.values():
        add_summary_argument(part)
    return parser


def measure_memory(args: argparse.Namespace, console: RunConsole) -> dict[str, object]:
    from pipeline.benchmark import memory

    summary = memory.measure_memory(args.rows)
    for name, by_rows in summary["peak_rss_mb_by_rows"].items():
        rows = [[f"{int(count):,}", f"{peak:,.0f}"] for count, peak in by_rows.items()]
        growth = summary[f"{name}_growth"]
        console.table(f"{name}: {growth:.2f} times the memory", ["train rows", "peak MB"], rows)
    return summary


def measure_data(args: argparse.Namespace, console: RunConsole) -> dict[str, object]:
    from pipeline.benchmark import data

    return _shown(console, data.measure_data(args.rows, args.pairs, rivals=not args.no_rivals))


def measure_step(args: argparse.Namespace, console: RunConsole) -> dict[str, object]:
    from pipeline.benchmark import step

    return _shown(console, step.measure_step(args.pairs, args.threads))


def measure_train(args: argparse.Namespace, console: RunConsole) -> dict[str, object]:
    from pipeline.benchmark import train

    return _shown(console, train.measure_train(args.pairs, args.threads, args.census))


def measure_balance(args: argparse.Namespace, console: RunConsole) -> dict[str, object]:
    from pipeline.benchmark import balance

    return _shown(console, balance.measure_balance(args.pairs, args.threads))


def _shown(console: RunConsole, summary: dict[str, object]) -> dict[str, object]:
    """Prints the shares and ratios of a summary."""
    ratios = [k for k in summary if any(word in k for word in ("share", "ratio", "fraction"))]
    console.table("medians", ["", ""], [[name, f"{summary[name]:.3f}"] for name in ratios])
    return summary


if __name__ == "__main__":
    sys.exit(main())
