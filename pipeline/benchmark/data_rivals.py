"""The same rows through a DataLoader worker and through Ray Data, with the same conversion."""

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchrec import KeyedJaggedTensor

from pipeline.benchmark.data_sets import TASKS
from pipeline.data.columns import one_batch
from pipeline.data.targets import TargetEncoder
from pipeline.data.transforms import FeatureTransforms

# Ray Data reads this many copies of the files, so that its start weighs little.
_RAY_COPIES = 4

# Values and lengths of the KeyedJaggedTensor, numbers, labels, weights.
_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Conversion:
    """Arrow rows → the tensors of a training-ready batch."""

    def __init__(self, transforms: FeatureTransforms) -> None:
        self.keys = list(transforms.single_features)
        self.transforms = transforms
        self.targets = TargetEncoder.of(TASKS, None)
        self.columns = [*transforms.columns, *self.targets.columns]

    def __call__(self, batch: pa.RecordBatch) -> _Parts:
        features = self.transforms.encode(batch)
        labels_BT, weights_BT = self.targets.encode(one_batch(batch))
        values = torch.from_numpy(features.ids_FB.reshape(-1))
        return (
            values,
            torch.ones_like(values),
            torch.from_numpy(features.dense_BN),
            torch.from_numpy(labels_BT),
            torch.from_numpy(weights_BT),
        )


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
    batches = iter(loader)
    first = _take(next(batches), convert)
    started = time.perf_counter()
    rows = sum(_take(parts, convert) for parts in batches)
    return (time.perf_counter() - started) * (rows + first) / rows


def ray_data_seconds(files: Sequence[str], transforms: FeatureTransforms, batch_size: int) -> float:
    """Time of one consumer of a streaming split with an Arrow collate function.

    Ray may use every core of the machine; starting it is not counted, starting the read is.
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
        started = time.perf_counter()
        dataset = ray.data.read_parquet(list(files) * _RAY_COPIES, columns=convert.columns)
        (split,) = dataset.streaming_split(1)
        for parts in split.iter_torch_batches(batch_size=batch_size, collate_fn=Collate()):
            _take(parts, convert)
        return (time.perf_counter() - started) / _RAY_COPIES
    finally:
        ray.shutdown()


def _take(parts: _Parts, convert: Conversion) -> int:
    """Makes the KeyedJaggedTensor of a batch; returns its rows."""
    values, lengths, dense_BN, _, _ = parts
    KeyedJaggedTensor(keys=convert.keys, values=values, lengths=lengths)
    return len(dense_BN)
