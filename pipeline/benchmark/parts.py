"""What `jobs.benchmark` can measure: from a part's options to its summary.

The parts are imported when they are asked for: some need packages that others do not.
"""

import argparse
from typing import Any

Summary = dict[str, Any]


def measure_memory(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import memory

    return memory.measure_memory(args.rows)


def measure_data(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import data

    return data.measure_data(args.rows, args.pairs, not args.no_rivals, args.figure)


def measure_step(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import step, step_cuda
    from pipeline.config import ConfigError

    if args.device == "cpu":
        if args.batch_size is not None:
            raise ConfigError("--batch-size has an effect with --device cuda only; leave it out")
        return step.measure_step(args.pairs, args.threads or [1, 2])
    if args.threads is not None:
        raise ConfigError("--threads has an effect with --device cpu only; leave it out")
    return step_cuda.measure_cuda_step(args.pairs, args.batch_size or step_cuda.BATCH_SIZE)


def measure_train(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import train

    return train.measure_train(args.pairs, args.threads, args.census)


def measure_peers(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import train

    return train.measure_peers(args.pairs, args.threads)


def measure_scale(args: argparse.Namespace) -> Summary:
    if args.simulate:
        from pipeline.benchmark import simulate

        return simulate.simulate([int(workers) for workers in args.simulate.split(",")])
    from pipeline.benchmark import scale

    return scale.measure_scale(args.pairs, args.workers)


def measure_balance(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import balance

    return balance.measure_balance(args.pairs, args.threads)


def measure_serve(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import serve

    return serve.measure_serve(args.pairs, args.seconds)


def measure_score(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import score

    return score.measure_score(args.pairs, args.rows)


def measure_fuzz(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import fuzz

    return fuzz.measure_fuzz(args.requests, args.seed)


def measure_checkpoint(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import checkpoint

    return checkpoint.measure_checkpoint(args.pairs, args.gigabytes, args.folder)


def measure_faults(args: argparse.Namespace) -> Summary:
    from pipeline.benchmark import faults

    return faults.measure_faults(args.trials, args.seed, args.kinds, args.form, args.folder)


def headline(summary: Summary) -> list[list[str]]:
    """The shares and ratios of a summary as rows of a table."""
    if "assumptions" in summary:
        from pipeline.benchmark.simulate import simulated_lines

        return simulated_lines(summary)
    if "rows_doubled" in summary:
        counts = ("trials", "faults", "ended", "identical", "rows_lost", "rows_doubled")
        return [[name, str(summary[name])] for name in counts]
    words = ("share", "ratio", "fraction", "scaling", "growth", "_over_", "copies")
    return [
        [name, f"{value:.3f}"]
        for name, value in summary.items()
        if isinstance(value, float) and any(word in name for word in words)
    ]
