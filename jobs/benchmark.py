"""Measures this project on this machine and prints ratios; run one part at a time.

python -m jobs.benchmark memory     peak memory of preparing and reading, and of ten times the rows
python -m jobs.benchmark data       reader against pyarrow's own decode, on one thread
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.common import add_summary_argument, run_job, write_summary
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=["memory", "data"], help="what to measure")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the (smaller) dataset")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved repetitions")
    add_summary_argument(parser)
    args = parser.parse_args(arguments)
    return run_job(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    """Runs one part, prints its table, writes its summary."""
    console = RunConsole()
    if args.part == "memory":
        from pipeline.benchmark.memory import measure_memory

        summary = measure_memory(args.rows)
        for name, by_rows in summary["peak_rss_mb_by_rows"].items():
            rows = [[f"{int(count):,}", f"{peak:,.0f}"] for count, peak in by_rows.items()]
            growth = summary[f"{name}_growth"]
            console.table(f"{name}: {growth:.2f} times the memory", ["rows", "peak MB"], rows)
    else:
        from pipeline.benchmark.data import measure_data

        summary = measure_data(args.rows, args.pairs)
        rows = [[k, f"{v:.2f}"] for k, v in summary.items() if isinstance(v, float)]
        console.table("reader", ["ratio", "median"], rows)
    write_summary(args.summary, summary)


if __name__ == "__main__":
    sys.exit(main())
