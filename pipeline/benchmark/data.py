"""The reader against pyarrow's own decode of the same columns of the same files.

Every figure is a median over interleaved pairs (decode, then reader), in one process, each on one
thread: the reader's background thread decodes while the consumer only takes the batches. Each runs
twice in its turn and the second run counts.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipeline.benchmark.data_rivals import dataloader_seconds, ray_data_seconds
from pipeline.benchmark.data_sets import (
    LISTS,
    TASKS,
    benchmark_features,
    write_benchmark_dataset,
)
from pipeline.benchmark.memory import memory_figure, reader_memory
from pipeline.benchmark.plan import measure_plan
from pipeline.data.fitting import fit_transforms
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Manifest
from pipeline.data.transforms import FeatureTransforms

SHUFFLE_ROWS = 262_144
STREAMS = 8
BATCH_SIZE = 8192
# Memory is watched over an epoch of this many times the rows.
LONG_EPOCH = 10


@dataclass(frozen=True)
class Dataset:
    """A dataset to measure on."""

    folder: Path
    manifest: Manifest
    lists: int

    def transforms(self, encoder: str = "identity") -> FeatureTransforms:
        return fit_transforms(benchmark_features(self.lists, encoder), self.folder)

    def loader(self, *, shuffle: bool, encoder: str = "identity") -> BatchLoader:
        """Shuffled: eight streams. In file order: one stream, which is the whole file in order."""
        return BatchLoader(
            folder=self.folder,
            manifest=self.manifest,
            split="train",
            transforms=self.transforms(encoder),
            tasks=TASKS,
            sample_weight=None,
            batch_size=BATCH_SIZE,
            streams=STREAMS if shuffle else 1,
            shuffle_rows=SHUFFLE_ROWS if shuffle else 0,
            seed=0,
        )

    def decode_seconds(self) -> float:
        """Time of pyarrow's read_row_group over the whole split, on one thread."""
        started = time.perf_counter()
        for shard in self.manifest.splits["train"]:
            file = pq.ParquetFile(self.folder / shard.path)
            for group in range(file.num_row_groups):
                file.read_row_group(group, use_threads=False)
        return time.perf_counter() - started


def measure_data(
    rows: int, pairs: int, rivals: bool = True, figure: Path | None = None
) -> dict[str, Any]:
    """Shares of pyarrow's decode speed and ratios to other ways of feeding the same model.

    Args:
        rows: rows of the dataset without lists; the one with lists has a quarter as many.
        pairs: interleaved repetitions.
        rivals: also measure Ray Data and a DataLoader worker.
        figure: where to draw the memory of an epoch of ``LONG_EPOCH`` times the rows.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
            plain = _dataset(Path(name) / "plain", rows, 0)
            jagged = _dataset(Path(name) / "jagged", max(rows // 4, 1), LISTS)
            summary: dict[str, Any] = {"rows": rows, "pairs": pairs}
            summary |= _shares(plain, jagged, pairs)
            samples = reader_memory(plain.folder, LONG_EPOCH)
            summary["peak_rss_mb_by_rows"] = {str(read): peak for read, _, peak in samples}
            if figure is not None:
                memory_figure(samples, figure)
            summary |= measure_plan()
            if rivals:
                summary |= _ratios(plain, pairs)
            return summary
    finally:
        torch.set_num_threads(threads)


def reader_seconds(loader: BatchLoader, epoch: int) -> float:
    """Time to take every batch of an epoch."""
    started = time.perf_counter()
    for _ in loader.epoch(epoch):
        pass
    return time.perf_counter() - started


def _dataset(folder: Path, rows: int, lists: int) -> Dataset:
    return Dataset(folder, write_benchmark_dataset(folder, rows, lists), lists)


def _shares(plain: Dataset, jagged: Dataset, pairs: int) -> dict[str, float]:
    measured = {
        "unshuffled_share_of_decode": (plain, plain.loader(shuffle=False)),
        "shuffled_share_of_decode": (plain, plain.loader(shuffle=True)),
        "hashed_shuffled_share_of_decode": (plain, plain.loader(shuffle=True, encoder="hash")),
        "jagged_share_of_decode": (jagged, jagged.loader(shuffle=False)),
        "jagged_shuffled_share_of_decode": (jagged, jagged.loader(shuffle=True)),
    }
    shares: dict[str, list[float]] = {name: [] for name in measured}
    speeds: dict[str, list[float]] = {name: [] for name in measured}
    epoch = itertools.count()
    for pair in range(pairs + 1):
        for name, (dataset, loader) in measured.items():
            decode = _steady(dataset.decode_seconds)
            read = _steady(lambda loader=loader: reader_seconds(loader, next(epoch)))  # type: ignore[misc]
            if pair:  # the first round fills caches
                shares[name].append(decode / read)
                speeds[name].append(dataset.manifest.rows("train") / read)
    result = {name: statistics.median(values) for name, values in shares.items()}
    for name, values in speeds.items():
        result[name.replace("_share_of_decode", "_rows_per_second")] = statistics.median(values)
    return result


def _steady(seconds: Callable[[], float]) -> float:
    """The second of two runs: the first pays for the memory the subject before it has left cold."""
    seconds()
    return seconds()


def _ratios(plain: Dataset, pairs: int) -> dict[str, float]:
    """Seconds of the others over seconds of this reader, all in file order."""
    loader = plain.loader(shuffle=False)
    files = [str(plain.folder / shard.path) for shard in plain.manifest.splits["train"]]
    rivals: dict[str, Callable[[], float]] = {
        "ratio_dataloader": lambda: dataloader_seconds(files, plain.transforms(), BATCH_SIZE),
        "ratio_ray_data": lambda: ray_data_seconds(files, plain.transforms(), BATCH_SIZE),
    }
    ratios: dict[str, float] = {}
    epoch = itertools.count()
    for name, seconds in rivals.items():
        measured = []
        for _ in range(max(1, pairs // 2)):
            ours = _steady(lambda: reader_seconds(loader, next(epoch)))
            measured.append(seconds() / ours)
        ratios[name] = statistics.median(measured)
    return ratios
