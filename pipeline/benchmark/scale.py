"""More workers, and larger tables: what each costs against the ideal.

Weak scaling: every worker has one core and a batch of its own size, so twice the workers train
twice the rows per step; the ideal is twice the examples per second. Table size: the same lookups in
tables of ten thousand and of ten million rows; the ideal is the same time.
"""

import os
import socket
import statistics
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.benchmark.data_sets import SINGLE, write_benchmark_dataset
from pipeline.benchmark.model import (
    BATCH_SIZE,
    benchmark_experiment,
    trainer_here,
    trainer_in_group,
)
from pipeline.benchmark.pairs import Ratio, interleaved
from pipeline.config import Experiment
from pipeline.training.trainer import Trainer

_STEPS = 24
_TABLE_ROWS = 100_000
_SMALL, _LARGE = 10_000, 10_000_000
# Ten million rows in every table would not fit a laptop: four tables show the same.
_TABLES = 4


def measure_scale(pairs: int, workers: list[int]) -> dict[str, Any]:
    """``weak_scaling_N`` for each number of workers, and ``table_size_cost_ratio``."""
    summary: dict[str, Any] = {"pairs": pairs, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
        folder = Path(name)
        write_benchmark_dataset(folder / "data", max(workers) * _STEPS * BATCH_SIZE, 0)
        counts = sorted({1, *workers})
        speeds = interleaved({str(n): partial(_rows_per_second, folder, n) for n in counts}, pairs)
        for n in counts:
            speed = speeds[str(n)]
            summary[f"examples_per_second_{n}_workers"] = statistics.median(speed)
            summary[f"seconds_by_phase_{n}_workers"] = torch.load(folder / f"seconds-{n}.pt")
            if n > 1:
                ratio = Ratio.of([many / one for many, one in zip(speed, speeds["1"], strict=True)])
                summary[f"weak_scaling_{n}"] = ratio.median
                summary[f"weak_scaling_{n}_spread"] = [ratio.low, ratio.high]
    return summary | _table_size_cost(pairs)


def _rows_per_second(folder: Path, workers: int) -> float:
    """Starts the workers, trains some steps to warm up, and times the rest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (workers, port, str(folder)), nprocs=workers)
    speed: float = torch.load(folder / f"speed-{workers}.pt")
    return speed


def _worker(rank: int, workers: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    try:
        experiment = benchmark_experiment(Path(folder) / "data", _TABLE_ROWS)
        data = experiment.data.model_copy(update={"batch_size": workers * BATCH_SIZE})
        experiment = experiment.model_copy(update={"data": data})
        with trainer_in_group(experiment) as trainer:
            seconds = _timed_steps(trainer)
        if rank == 0:
            torch.save(
                workers * BATCH_SIZE * (_STEPS - 4) / seconds, f"{folder}/speed-{workers}.pt"
            )
            torch.save(dict(trainer.clock.seconds), f"{folder}/seconds-{workers}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _timed_steps(trainer: Trainer, warm_up: int = 4) -> float:
    started = 0.0
    for step, batch in enumerate(islice(trainer.batches(0), _STEPS)):
        if step == warm_up:
            dist.barrier()
            started = time.perf_counter()
        trainer.train_step(batch, step)
    dist.barrier()
    return time.perf_counter() - started


def _table_size_cost(pairs: int) -> dict[str, Any]:
    """Seconds of a step that is nearly all embedding, in large tables over small ones."""
    seconds: dict[str, list[float]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows in (_SMALL, _LARGE):
            with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
                write_benchmark_dataset(Path(name), 16 * BATCH_SIZE, 0, rows)
                with trainer_here(_embedding_experiment(Path(name), rows)) as trainer:
                    seconds[str(rows)] = _embedding_seconds(trainer, pairs)
    finally:
        torch.set_num_threads(before)
    large, small = (statistics.median(seconds[str(rows)]) for rows in (_LARGE, _SMALL))
    return {"table_size_cost_ratio": large / small, "table_size_rows": [_SMALL, _LARGE]}


def _embedding_experiment(folder: Path, rows: int) -> Experiment:
    """A few tables and next to no dense part."""
    experiment = benchmark_experiment(folder, rows, [[8]])
    features = experiment.features.model_copy(
        update={"categorical": experiment.features.categorical[:_TABLES], "numeric": []}
    )
    assert len(experiment.features.categorical) == SINGLE
    return experiment.model_copy(update={"features": features})


def _embedding_seconds(trainer: Trainer, pairs: int) -> list[float]:
    batches = list(trainer.batches(0))
    times = []
    for turn in range(pairs + 1):
        started = time.perf_counter()
        for number, batch in enumerate(batches):
            trainer.train_step(batch, turn * len(batches) + number)
        if turn:
            times.append((time.perf_counter() - started) / len(batches))
    return times
