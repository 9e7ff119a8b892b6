"""Measures this project on this machine and prints ratios; run one part at a time.

python -m jobs.benchmark memory     peak memory of preparing and reading, and of ten times the rows
python -m jobs.benchmark data       the reader against pyarrow's decode, Ray Data and DataLoader
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.common import add_summary_argument, check_summary, run_job, write_summary
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(required=True, metavar="PART")
    memory = parts.add_parser("memory", help="peak memory by number of rows")
    memory.add_argument(
        "--rows", type=int, default=1_000_000, help="train rows of the smaller dataset"
    )
    memory.set_defaults(part=measure_memory)
    data = parts.add_parser("data", help="rows per second of the reader, as shares and ratios")
    data.add_argument("--rows", type=int, default=2_000_000, help="rows of the dataset")
    data.add_argument("--pairs", type=int, default=5, help="interleaved repetitions")
    data.add_argument("--no-rivals", action="store_true", help="leave Ray Data and DataLoader out")
    data.set_defaults(part=measure_data)
    for part in (memory, data):
        add_summary_argument(part)
    args = parser.parse_args(arguments)
    return run_job(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Runs one part and writes its summary."""
    check_summary(args.summary)
    write_summary(args.summary, args.part(args, RunConsole()))


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

    summary = data.measure_data(args.rows, args.pairs, rivals=not args.no_rivals)
    ratios = {k: v for k, v in summary.items() if "share" in k or "ratio" in k}
    console.table("reader", ["median", ""], [[k, f"{v:.2f}"] for k, v in ratios.items()])
    return summary


if __name__ == "__main__":
    sys.exit(main())
