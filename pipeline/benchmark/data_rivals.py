"""The same rows through a DataLoader worker and through Ray Data, with the same conversion."""

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchrec import KeyedJaggedTensor

from pipeline.benchmark.data_sets import TASKS
from pipeline.data.targets import TargetEncoder
from pipeline.data.transforms import FeatureTransforms

_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Conversion:
    """Arrow rows → values of the KeyedJaggedTensor, numbers, labels, weights."""

    def __init__(self, transforms: FeatureTransforms) -> None:
        self.transforms = transforms
        self.targets = TargetEncoder.of(TASKS, None)
        self.columns = [*transforms.columns, *self.targets.columns]

    def __call__(self, batch: pa.RecordBatch) -> _Parts:
        features = self.transforms.encode(batch)
        labels_BT, weights_BT = self.targets.encode(batch)
        return (
            torch.from_numpy(features.ids_FB.reshape(-1)),
            torch.from_numpy(features.dense_BN),
            torch.from_numpy(labels_BT),
            torch.from_numpy(weights_BT),
        )

    def keyed(self, values: torch.Tensor) -> KeyedJaggedTensor:
        keys = list(self.transforms.single_features)
        lengths = torch.ones_like(values)
        return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths)


class _Files(IterableDataset):
    def __init__(self, files: Sequence[str], convert: Conversion, batch_size: int) -> None:
        self._files, self._convert, self._batch_size = files, convert, batch_size

    def __iter__(self) -> Iterator[_Parts]:
        for path in self._files:
            file = pq.ParquetFile(path)
            batches = file.iter_batches(
                self._batch_size, columns=self._convert.columns, use_threads=False
            )
            for batch in batches:
                yield self._convert(batch)


def dataloader_seconds(
    files: Sequence[str], transforms: FeatureTransforms, batch_size: int
) -> float:
    """Time of one worker process that decodes and converts; starting it is not counted."""
    convert = Conversion(transforms)
    loader = DataLoader(_Files(files, convert, batch_size), batch_size=None, num_workers=1)
    return _steady_seconds(iter(loader), convert)


def ray_data_seconds(files: Sequence[str], transforms: FeatureTransforms, batch_size: int) -> float:
    """Time of one consumer of a streaming split with an Arrow collate function.

    Ray may use every core of the machine; what happens before the first batch is not counted.
    """
    import ray
    from ray.data.collate_fn import ArrowBatchCollateFn

    convert = Conversion(transforms)

    class Collate(ArrowBatchCollateFn):
        def __call__(self, batch: pa.Table) -> _Parts:
            return convert(batch)

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.read_parquet(list(files), columns=convert.columns)
        (split,) = dataset.streaming_split(1)
        batches = iter(split.iter_torch_batches(batch_size=batch_size, collate_fn=Collate()))
        return _steady_seconds(batches, convert)
    finally:
        ray.shutdown()


def _steady_seconds(batches: Iterator[_Parts], convert: Conversion) -> float:
    """Time for all rows at the speed seen after the first batch."""
    first = len(next(batches)[1])
    rows, started = 0, time.perf_counter()
    for values, dense_BN, _, _ in batches:
        convert.keyed(values)
        rows += len(dense_BN)
    return (time.perf_counter() - started) * (rows + first) / rows
