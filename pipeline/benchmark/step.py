"""The model step alone, on batches that lie ready, as a share of what the machine can do.

The ceiling is the step's matrix products at the rate of the fastest product measured beside it, by
whichever library; all else (lookups, gates, activations, optimizers) counts as loss. The same share
of what ``torch.mm`` reaches may exceed 1, where another library is faster. ``share_of_possible``
also counts the bytes that tables and optimizers must move, at the rate of a copy.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import ple
from pipeline.benchmark.data_sets import write_benchmark_dataset
from pipeline.benchmark.machine import matmul_rate, memory_rate, torch_mm_rate
from pipeline.benchmark.model import BATCH_SIZE, benchmark_experiment, trainer_here
from pipeline.benchmark.pairs import Ratio, interleaved
from pipeline.training.trainer import Trainer

_TABLE_ROWS = 100_000
_BATCHES = 16
_STEPS = 12


def measure_step(pairs: int, threads: list[int]) -> dict[str, Any]:
    """``roofline_share_Nt``, ``torch_mm_share_Nt``, ``share_of_possible_Nt`` for each number of
    threads, and their parts.

    Args:
        pairs: interleaved rounds of products and steps.
        threads: intra-op threads to measure with.
    """
    before = torch.get_num_threads()
    summary: dict[str, Any] = {"pairs": pairs, "batch_size": BATCH_SIZE}
    try:
        with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
            write_benchmark_dataset(Path(name), _BATCHES * BATCH_SIZE, 0)
            experiment = benchmark_experiment(Path(name), _TABLE_ROWS)
            for count in threads:
                torch.set_num_threads(count)
                with trainer_here(experiment) as trainer:
                    summary |= _share(trainer, pairs, count)
    finally:
        torch.set_num_threads(before)
    return summary


def _share(trainer: Trainer, pairs: int, threads: int) -> dict[str, Any]:
    batches = list(trainer.batches(0))
    endless, steps = itertools.cycle(batches), itertools.count()

    def seconds_per_step() -> float:
        started = time.perf_counter()
        for _ in range(_STEPS):
            trainer.train_step(next(endless), next(steps))
        return (time.perf_counter() - started) / _STEPS

    measured = interleaved(
        {
            "product": matmul_rate,
            "torch_mm": torch_mm_rate,
            "copy": memory_rate,
            "step": seconds_per_step,
        },
        pairs,
    )
    # Forward, gradient of the input, gradient of the weights: three products of one size.
    flops = 3 * ple.cost(trainer.model.module).flops_per_row * BATCH_SIZE
    share, mm_share = (
        Ratio.of(
            [flops / rate / step for rate, step in zip(measured[by], measured["step"], strict=True)]
        )
        for by in ("product", "torch_mm")
    )
    moved = least_bytes(trainer.model.module, BATCH_SIZE)
    possible = Ratio.of(
        [
            (flops / rate + moved / copied) / step
            for rate, copied, step in zip(
                measured["product"], measured["copy"], measured["step"], strict=True
            )
        ]
    )
    return {
        f"roofline_share_{threads}t": share.median,
        f"roofline_spread_{threads}t": [share.low, share.high],
        f"torch_mm_share_{threads}t": mm_share.median,
        f"torch_mm_spread_{threads}t": [mm_share.low, mm_share.high],
        f"flops_per_step_{threads}t": flops,
        f"matmul_flops_per_second_{threads}t": statistics.median(measured["product"]),
        f"share_of_possible_{threads}t": possible.median,
        f"share_of_possible_spread_{threads}t": [possible.low, possible.high],
        f"bytes_per_step_{threads}t": moved,
        f"memory_bytes_per_second_{threads}t": statistics.median(measured["copy"]),
        f"examples_per_second_{threads}t": BATCH_SIZE / statistics.median(measured["step"]),
    }


def least_bytes(ranker: ple.Ranker, batch_rows: int) -> int:
    """Bytes that a step must move if caches hold all activations: rows of tables, dense weights.

    A row is read forward, read and written backward, as are its moment's four bytes; its id is read
    and its gradient; the pooled row is written. A dense weight, its two moments and its gradient:
    seven numbers.
    """
    assert ranker.embeddings is not None
    rows = sum(8 + 5 * 4 * table.dim + 2 * 4 for table in ranker.embeddings.tables)
    return batch_rows * rows + 7 * 4 * ple.cost(ranker).parameters
