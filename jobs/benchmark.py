"""Measures this project on this machine and prints ratios; run one part at a time.

python -m jobs.benchmark PART [options]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import add_summary_argument, run_job
from jobs.summary import check_summary, write_summary
from pipeline.benchmark import parts
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return run_job(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Runs one part, shows its ratios and writes its summary."""
    check_summary(args.summary)
    summary = args.measure(args)
    RunConsole().table("medians", ["", ""], parts.headline(summary))
    write_summary(args.summary, summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    of = parser.add_subparsers(required=True, metavar="PART")
    memory = of.add_parser("memory", help="peak memory of preparing and reading, by rows")
    memory.add_argument("--rows", type=int, default=1_000_000, help="rows of the smaller dataset")
    memory.set_defaults(measure=parts.measure_memory)
    data = of.add_parser("data", help="the reader against pyarrow, Ray Data and DataLoader")
    data.add_argument("--rows", type=int, default=2_000_000, help="rows of the dataset")
    data.add_argument("--no-rivals", action="store_true", help="leave Ray Data and DataLoader out")
    data.add_argument("--figure", type=Path, help="PNG of the memory of an epoch ten times as long")
    data.set_defaults(measure=parts.measure_data)
    step = of.add_parser("step", help="the model step alone, as a share of the FLOP ceiling")
    step.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it computes")
    step.add_argument("--threads", type=int, nargs="+", help="intra-op threads; absent = 1 2")
    step.add_argument("--batch-size", type=int, help="rows of a batch, on cuda; absent = 65536")
    step.set_defaults(measure=parts.measure_step)
    train = of.add_parser("train", help="Parquet to moved weights, against other PLEs")
    train.add_argument("--threads", type=int, default=2, help="intra-op threads of every subject")
    train.add_argument("--census", type=Path, help="a dataset of jobs.prepare census-income")
    train.set_defaults(measure=parts.measure_train)
    peers = of.add_parser("peers", help="the step against other PLEs, all rows in memory")
    peers.add_argument("--threads", type=int, default=2, help="intra-op threads of every subject")
    peers.set_defaults(measure=parts.measure_peers)
    scale = of.add_parser("scale", help="more workers, larger tables")
    scale.add_argument("--workers", type=int, nargs="+", default=[2], help="numbers of workers")
    scale.add_argument("--simulate", metavar="8,64,512", help="on paper instead, on so many GPUs")
    scale.set_defaults(measure=parts.measure_scale)
    balance = of.add_parser("balance", help="a step of each balancing method, over a plain one")
    balance.add_argument("--threads", type=int, default=1, help="intra-op threads")
    balance.set_defaults(measure=parts.measure_balance)
    serve = of.add_parser("serve", help="the online service against the bare model, cold load")
    serve.add_argument("--seconds", type=float, default=5.0, help="of load per round and size")
    serve.set_defaults(measure=parts.measure_serve)
    fuzz = of.add_parser("fuzz", help="malformed requests against the online service")
    fuzz.add_argument("--requests", type=int, default=10_000, help="how many")
    fuzz.add_argument("--seed", type=int, default=0, help="what they are drawn by")
    fuzz.set_defaults(measure=parts.measure_fuzz)
    score = of.add_parser("score", help="batch scoring against the model's own forward pass")
    score.add_argument("--rows", type=int, default=1_048_576, help="rows of the input")
    score.set_defaults(measure=parts.measure_score)
    checkpoint = of.add_parser("checkpoint", help="what a save costs the loop, against a copy")
    checkpoint.add_argument("--gigabytes", type=float, default=2.0, help="size of the state")
    checkpoint.add_argument("--folder", type=Path, help="where to save; absent = temporary")
    checkpoint.set_defaults(measure=parts.measure_checkpoint)
    faults = of.add_parser("faults", help="kills at random moments, against a run left alone")
    faults.add_argument("--trials", type=int, default=50, help="how many runs")
    faults.add_argument("--seed", type=int, default=0, help="what faults are drawn by")
    faults.add_argument("--kinds", type=lambda text: text.split(","), help="worker,driver,...")
    faults.add_argument("--form", choices=("processes", "ray"), default="processes")
    faults.add_argument("--folder", type=Path, help="where runs go; absent = temporary")
    faults.set_defaults(measure=parts.measure_faults)
    for part in (checkpoint, data, step, train, peers, scale, balance, serve, score):
        part.add_argument("--pairs", type=int, default=5, help="interleaved repetitions")
    for part in of.choices.values():
        add_summary_argument(part)
    return parser


if __name__ == "__main__":
    sys.exit(main())
