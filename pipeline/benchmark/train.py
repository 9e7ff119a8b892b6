"""The whole road from Parquet to moved weights, against others on the same rows and sizes.

One worker. Ours reads the shards, shuffled, and trains a few epochs in a row, as a run does: the
first from a cold start, every other one read while the one before is trained. DeepCTR-Torch trains
an epoch from arrays it holds in memory; plain PyTorch as many as ours, read the same way. All
compute in float32; where the machine computes in bf16, ours runs once more with ``train.precision:
bf16``, and its figures end in ``_bf16``. Every ratio is the median over interleaved rounds. All
share a process, and with it ours' way with freed memory.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.benchmark.data_sets import NUMBERS, SINGLE, write_benchmark_dataset
from pipeline.benchmark.model import (
    BATCH_SIZE,
    EQUAL_LEVELS,
    benchmark_experiment,
    census_experiment,
    trainer_here,
)
from pipeline.benchmark.pairs import Ratio, interleaved
from pipeline.benchmark.peers.deepctr import DeepCtr
from pipeline.benchmark.peers.plain_torch import PlainPle, train_plain
from pipeline.config import Experiment
from pipeline.data.batch import Batch
from pipeline.training.precision import computes_bf16
from pipeline.training.trainer import Trainer

_ROWS = 24 * BATCH_SIZE
# Epochs of ours that one round trains in a row.
_EPOCHS = 3


@dataclass(frozen=True)
class Arrays:
    """The rows of a train split, encoded, in memory."""

    ids_BF: np.ndarray
    dense_BN: np.ndarray
    labels_BT: np.ndarray

    @property
    def rows(self) -> int:
        return self.labels_BT.shape[0]


def measure_train(pairs: int, threads: int, census: Path | None) -> dict[str, Any]:
    """Ratios of examples per second, and the share of time spent waiting for data.

    Args:
        pairs: interleaved rounds.
        threads: intra-op threads of every subject on the benchmark model; the census model has 1.
        census: also train on this dataset of ``jobs.prepare census-income``.
    """
    before = torch.get_num_threads()
    summary: dict[str, Any] = {"threads": threads, "pairs": pairs}
    try:
        torch.set_num_threads(threads)
        summary |= _benchmark_model(pairs, table_rows=100_000, batches=24, suffix="")
        summary |= _benchmark_model(pairs, table_rows=1_000_000, batches=4, suffix="_1m_rows")
        if census is not None:
            torch.set_num_threads(1)
            summary |= _census_model(pairs, census)
    finally:
        torch.set_num_threads(before)
    return summary


class Ours:
    """Epochs of our own training, one after the other, in one precision."""

    def __init__(self, trainer: Trainer, dtype: torch.dtype = torch.float32) -> None:
        self.trainer = trainer
        self._dtype = dtype
        self._epoch = 0
        self._step = 0

    def seconds_per_row(self, ready: Sequence[Batch] | None = None) -> float:
        """Trains some epochs, first read to last step, or on batches that lie ready."""
        if ready is not None:
            seconds, _, rows = self._train(ready)
            return seconds / rows
        started = time.perf_counter()
        trained = [self._train(primes_next=n < _EPOCHS - 1) for n in range(_EPOCHS)]
        return (time.perf_counter() - started) / sum(rows for *_, rows in trained)

    def data_wait_fraction(self) -> float:
        """Share of an epoch in which the loop waits for a batch.

        As in a training of several epochs, its reading begins while the one before is trained.
        """
        self._train(primes_next=True)
        seconds, waited, _ = self._train()
        return waited / seconds

    def _train(
        self, ready: Sequence[Batch] | None = None, primes_next: bool = False
    ) -> tuple[float, float, int]:
        """Seconds of an epoch, those of them in which the loop waited, and rows."""
        trainer, epoch = self.trainer, self._epoch
        trainer.model.module.training_dtype = self._dtype
        self._epoch += 1
        waited = trainer.clock.seconds.get("data wait", 0.0)
        rows, started = 0, time.perf_counter()
        for batch in trainer.batches(epoch) if ready is None else ready:
            if primes_next:
                trainer.loaders["train"].prime(epoch + 1)
            trainer.train_step(batch, self._step)
            self._step += 1
            rows += batch.rows
        seconds = time.perf_counter() - started
        return seconds, trainer.clock.seconds.get("data wait", 0.0) - waited, rows


def collect_arrays(trainer: Trainer) -> Arrays:
    """One epoch of the train split, as the trainer's own reader encodes it."""
    ids, dense, labels = [], [], []
    for batch in trainer.loaders["train"].epoch(0):
        assert batch.ids is not None
        ids.append(batch.ids.values().view(-1, len(batch.dense_BN))[:, : batch.rows].T.numpy())
        dense.append(batch.dense_BN[: batch.rows].numpy())
        labels.append(batch.labels_BT[: batch.rows].numpy())
    return Arrays(np.concatenate(ids), np.concatenate(dense), np.concatenate(labels))


def _benchmark_model(pairs: int, table_rows: int, batches: int, suffix: str) -> dict[str, Any]:
    # The peer's time hardly depends on what a batch holds: a few batches of it suffice.
    peer_rows = batches * BATCH_SIZE
    with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
        write_benchmark_dataset(Path(name), _ROWS, 0, table_rows)
        experiment = benchmark_experiment(Path(name), table_rows, EQUAL_LEVELS)
        with trainer_here(experiment) as trainer:
            ours = _precisions(trainer)
            peer = _deepctr(experiment, collect_arrays(trainer), [table_rows] * SINGLE)
            subjects: dict[str, Callable[[], float]] = {
                **{name: own.seconds_per_row for name, own in ours.items()},
                "deepctr_torch": lambda: peer.epoch_seconds(peer_rows) / peer_rows,
            }
            if not suffix:
                subjects["plain_torch"] = _Plain(ours["ours"]).seconds_per_row
            seconds = interleaved(subjects, pairs)
            return _ratios(seconds, suffix) | _waits(ours, suffix)


def _census_model(pairs: int, folder: Path) -> dict[str, Any]:
    experiment = census_experiment(folder)
    with trainer_here(experiment) as trainer:
        ours = _precisions(trainer)
        arrays = collect_arrays(trainer)
        peer = _deepctr(experiment, arrays, [table.rows for table in trainer.transforms.tables])
        seconds = interleaved(
            {
                **{name: own.seconds_per_row for name, own in ours.items()},
                "deepctr_torch": lambda: peer.epoch_seconds(arrays.rows) / arrays.rows,
            },
            pairs,
        )
        return _ratios(seconds, "_census") | _waits(ours, "_census")


def _precisions(trainer: Trainer) -> dict[str, Ours]:
    """Our training in each precision that this machine has."""
    ours = {"ours": Ours(trainer)}
    if computes_bf16(torch.device("cpu")):
        ours["ours_bf16"] = Ours(trainer, torch.bfloat16)
    return ours


def measure_peers(pairs: int, threads: int) -> dict[str, Any]:
    """The same ratios with all rows in memory: ours and plain PyTorch step over batches that lie
    ready, DeepCTR-Torch fits its arrays."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
            write_benchmark_dataset(Path(name), _ROWS, 0, 100_000)
            experiment = benchmark_experiment(Path(name), 100_000, EQUAL_LEVELS)
            with trainer_here(experiment) as trainer:
                arrays = collect_arrays(trainer)
                peer = _deepctr(experiment, arrays, [100_000] * SINGLE)
                batches = list(trainer.batches(0))
                seconds = interleaved(
                    {
                        **{
                            name: partial(own.seconds_per_row, batches)
                            for name, own in _precisions(trainer).items()
                        },
                        "deepctr_torch": lambda: peer.epoch_seconds(arrays.rows) / arrays.rows,
                        "plain_torch": partial(_Plain(Ours(trainer)).seconds_per_row, batches),
                    },
                    pairs,
                )
    finally:
        torch.set_num_threads(before)
    return {"threads": threads, "pairs": pairs} | _ratios(seconds, "_in_memory")


def _waits(ours: dict[str, Ours], suffix: str) -> dict[str, Any]:
    return {
        f"data_wait_fraction{suffix}{name.removeprefix('ours')}": own.data_wait_fraction()
        for name, own in ours.items()
    }


def _deepctr(experiment: Experiment, arrays: Arrays, table_rows: Sequence[int]) -> DeepCtr:
    """The same sizes over there."""
    levels = experiment.model.levels
    assert isinstance(levels[0].task_experts, int)
    return DeepCtr(
        arrays.ids_BF,
        arrays.dense_BN,
        arrays.labels_BT,
        table_rows=table_rows,
        width=experiment.features.embedding_dim,
        experts=levels[0].task_experts,
        hidden=levels[0].hidden,
        levels=len(levels),
        tower=experiment.model.tower_hidden,
        batch_size=experiment.data.batch_size,
    )


class _Plain:
    """Epochs of plain PyTorch, fed by the reader of ``ours``."""

    def __init__(self, ours: Ours) -> None:
        self._loader = ours.trainer.loaders["train"]
        experiment = ours.trainer.experiment
        self._model = PlainPle(
            [table.rows for table in ours.trainer.transforms.tables],
            experiment.features.embedding_dim,
            NUMBERS,
            [level.hidden for level in experiment.model.levels],
            experiment.model.levels[0].shared_experts,
            experiment.model.tower_hidden,
        )
        self._optimizer = torch.optim.Adagrad(self._model.parameters(), lr=0.01)

    def seconds_per_row(self, ready: Sequence[Batch] | None = None) -> float:
        started, rows = time.perf_counter(), 0
        for epoch in range(_EPOCHS if ready is None else 1):
            batches = self._loader.epoch(epoch) if ready is None else ready
            if ready is None and epoch < _EPOCHS - 1:
                self._loader.prime(epoch + 1)
            rows += train_plain(self._model, self._optimizer, batches)
        return (time.perf_counter() - started) / rows


def _ratios(seconds: dict[str, list[float]], suffix: str) -> dict[str, Any]:
    """Seconds of the others over ours, by round; and the speeds themselves, for the record."""
    result: dict[str, Any] = {}
    for name, values in seconds.items():
        speed = statistics.median(1.0 / value for value in values)
        result[f"examples_per_second_{name}{suffix}"] = speed
    for ours in [name for name in seconds if name.startswith("ours")]:
        precision = ours.removeprefix("ours")
        for name in [name for name in seconds if not name.startswith("ours")]:
            pairs = zip(seconds[name], seconds[ours], strict=True)
            ratio = Ratio.of([theirs / own for theirs, own in pairs])
            result[f"ratio_{name}{suffix}{precision}"] = ratio.median
            result[f"spread_{name}{suffix}{precision}"] = [ratio.low, ratio.high]
    return result
