"""Measures this project on this machine and prints ratios; run one part at a time.

python -m jobs.benchmark memory     peak memory of preparing and reading, and of ten times the rows
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.common import add_summary_argument, check_summary, run_job, write_summary
from pipeline.benchmark.memory import measure_memory
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    memory = parts.add_parser("memory", help="peak memory by number of rows")
    memory.add_argument(
        "--rows", type=int, default=1_000_000, help="train rows of the smaller dataset"
    )
    add_summary_argument(memory)
    args = parser.parse_args(arguments)
    return run_job(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    """Runs one part, prints its table, writes its summary."""
    check_summary(args.summary)
    console = RunConsole()
    summary = measure_memory(args.rows)
    for name, by_rows in summary["peak_rss_mb_by_rows"].items():
        rows = [[f"{int(count):,}", f"{peak:,.0f}"] for count, peak in by_rows.items()]
        growth = summary[f"{name}_growth"]
        console.table(f"{name}: {growth:.2f} times the memory", ["train rows", "peak MB"], rows)
    write_summary(args.summary, summary)


if __name__ == "__main__":
    sys.exit(main())
