"""Batches of one split for one worker, decoded ahead of the step by a background thread."""

import queue
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.tasks import TaskConfig
from pipeline.data.batch import Batch, Collator, Segment
from pipeline.data.encoded import EncodedRows
from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.plan import EpochPlan, SplitIndex
from pipeline.data.reader import ShardReader
from pipeline.data.stream import RowEncoder, stream_rows
from pipeline.data.targets import TargetEncoder
from pipeline.data.transforms import FeatureTransforms


class BatchLoader:
    """One worker's part of the global batches of a split.

    The sequence of global batches depends on the manifest, the seed, the epoch, the global batch
    size, ``streams`` and ``shuffle_rows``, never on the number of workers: worker r of W owns a
    fixed range of the logical streams, and every stream gives ``batch_size / streams`` rows to
    every global batch.

    Memory: ``shuffle_rows`` encoded rows twice over, one row group (or a slice of it) for every
    stream, and ``prefetch_batches`` batches.

    Args:
        folder: the dataset.
        manifest: its manifest.
        split: ``train``, ``valid`` or ``test``.
        transforms: encodes the features.
        tasks: labels and sample spaces, in the order of labels_BT.
        sample_weight: column of row weights, or None.
        batch_size: rows of a global batch, a multiple of ``streams``.
        streams: S, at least ``world_size``.
        shuffle_rows: rows shuffled together, over all streams; 0 = every stream reads a
            contiguous range in file order.
        seed: of the order.
        rank, world_size: which worker this is.
        prefetch_batches: batches decoded ahead.
        pin_memory: whether batches are handed out in page-locked memory (for a GPU).

    Attributes:
        steps: batches of an epoch, the same on every worker.
        local_batch_size: rows of each of this worker's batches, padding included.
        counters: what was seen so far, by kind.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        manifest: Manifest,
        split: str,
        transforms: FeatureTransforms,
        tasks: Sequence[TaskConfig],
        sample_weight: str | None,
        batch_size: int,
        streams: int,
        shuffle_rows: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch_batches: int = 8,
        pin_memory: bool = False,
    ) -> None:
        if batch_size % streams:
            raise ValueError(f"batch size {batch_size} is not a multiple of {streams} streams")
        if not 0 <= rank < world_size <= streams:
            raise ValueError(
                f"worker {rank} of {world_size} cannot share out {streams} streams; raise "
                "data.streams or use fewer workers"
            )
        index = SplitIndex(manifest, split)
        self._rows_each = batch_size // streams
        block_rows = -(-shuffle_rows // (streams * self._rows_each)) * self._rows_each
        self._plan = EpochPlan(index, streams, self._rows_each, block_rows, seed)
        self._folder = str(folder)
        self._streams = range(streams * rank // world_size, streams * (rank + 1) // world_size)
        self.steps = self._plan.steps
        # Row-wise sharding exchanges batches of one size: a worker with fewer streams pads.
        self.local_batch_size = -(-streams // world_size) * self._rows_each
        self.counters: Counter[str] = Counter()
        self._prefetch = prefetch_batches
        self._pin_memory = pin_memory
        self._index = index
        targets = TargetEncoder.of(tasks, sample_weight)
        for name in (*transforms.columns, *targets.columns):
            manifest.column(name)
        self._encoder = RowEncoder(transforms, targets, index, self._folder, self.counters)
        self._string_columns = transforms.string_columns
        self._collate = Collator(transforms, len(targets.tasks), self.local_batch_size)
        # What the order depends on; a cursor is valid where all of it is the same.
        self._order = {
            "split": split,
            "digest": manifest.digest,
            "seed": seed,
            "batch_size": batch_size,
            "streams": streams,
            "shuffle_rows": shuffle_rows,
        }
        self._cursor = self._cursor_at(0, 0)
        self._resume: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last batch handed out: a few numbers, valid for any world_size."""
        return dict(self._cursor)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next ``epoch(state["epoch"])`` go on after the batch the cursor came with.

        Raises:
            DatasetError: the cursor belongs to another dataset or order of rows.
        """
        for key, value in self._order.items():
            if state.get(key) != value:
                raise DatasetError(
                    f"cannot resume: the checkpoint's {key} is {state.get(key)!r}, here it is "
                    f"{value!r}; resume with the settings and the data the run began with"
                )
        self._cursor = dict(state)
        self._resume = self._cursor

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch: all, or after ``load_state_dict`` those after its cursor."""
        resumed, self._resume = self._resume, None
        first = resumed["step"] if resumed and resumed["epoch"] == epoch else 0
        self._cursor = self._cursor_at(epoch, first)
        batches: queue.Queue[Batch | BaseException | None] = queue.Queue(self._prefetch)
        stop = threading.Event()

        def work() -> None:
            item: Batch | BaseException | None = None
            source = self._read(epoch, first)
            try:
                for item in source:
                    if not _put(batches, item, stop):
                        return
                item = None
            except BaseException as error:
                item = error
            finally:
                source.close()
            _put(batches, item, stop)

        thread = threading.Thread(target=work, name=f"read-{self._order['split']}", daemon=True)
        thread.start()
        try:
            while True:
                item = batches.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                self._cursor = item.cursor
                yield item
        finally:
            stop.set()
            thread.join()

    def _cursor_at(self, epoch: int, step: int) -> dict[str, Any]:
        return {"epoch": epoch, "step": step, **self._order}

    def _read(self, epoch: int, first: int) -> Generator[Batch, None, None]:
        """Batches from number ``first`` on, in the calling thread."""
        self.counters["empty_shards"] = len(self._index.empty_shards)
        reader = ShardReader(
            self._folder,
            self._index,
            self._encoder.columns,
            self._string_columns,
            len(self._streams),
            self.counters,
        )
        try:
            position = first * self._rows_each
            alone = self._rows_each if self._rows_each == self.local_batch_size else None
            walks = [
                _Walk(stream_rows(plan, reader, self._encoder, position, alone))
                for plan in self._plan.epoch(epoch, self._streams)
            ]
            for step in range(first, self.steps):
                segments: list[Segment] = []
                for number, walk in enumerate(walks):
                    segments += walk.take(self._rows_each, number * self._rows_each)
                batch = self._collate(segments, self._cursor_at(epoch, step + 1))
                self.counters["rows"] += batch.rows
                yield batch.pin_memory() if self._pin_memory else batch
        finally:
            reader.close()


class _Walk:
    """Hands out a stream's encoded rows in equal amounts."""

    def __init__(self, pieces: Iterator[EncodedRows]) -> None:
        self._pieces = pieces
        self._rows: EncodedRows | None = None
        self._next = 0

    def take(self, rows: int, at: int) -> list[Segment]:
        """The next ``rows`` rows, to become rows ``at`` … of a batch; fewer at the end."""
        segments: list[Segment] = []
        while rows:
            if self._rows is None or self._next == self._rows.rows:
                # Dropped first: the old block is garbage before the new one is made.
                self._rows, self._next = None, 0
                self._rows = next(self._pieces, None)
                if self._rows is None:
                    break
                continue
            stop = min(self._next + rows, self._rows.rows)
            segments.append(Segment(self._rows, self._next, stop, at))
            rows -= stop - self._next
            at += stop - self._next
            self._next = stop
        return segments


def _put(target: "queue.Queue[Any]", item: Any, stop: threading.Event) -> bool:
    """Waits for room; gives up once the consumer has left."""
    while not stop.is_set():
        try:
            target.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
