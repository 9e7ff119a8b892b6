"""Batches of one split for one worker, decoded ahead of the step by a background thread."""

from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.faults import FaultsConfig
from pipeline.config.tasks import TaskConfig
from pipeline.data.batch import Batch, Collator, Segment
from pipeline.data.epoch_batches import EpochBatches, Made
from pipeline.data.keys import KeyEncoder
from pipeline.data.losses import LostRows, void_rows_by_code
from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.plan import EpochPlan, SplitIndex
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.reader import ShardReader
from pipeline.data.remote import RetryPolicy
from pipeline.data.row_encoder import RowEncoder
from pipeline.data.shard_files import ShardFiles
from pipeline.data.storage import open_store
from pipeline.data.stream import Walk, stream_rows
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
        faults: what happens to rows that cannot be used.
        keys: columns of keys that batches carry, for evaluation.

    Attributes:
        steps: batches of an epoch, the same on every worker.
        local_batch_size: rows of each of this worker's batches, padding included.
        counters: what was seen in the batches handed out so far, by kind.
        lost: the rows of these batches that could not be used.
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
        faults: FaultsConfig | None = None,
        keys: Sequence[str] = (),
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
        self._store = open_store(manifest.root or folder)
        self._streams = range(streams * rank // world_size, streams * (rank + 1) // world_size)
        self.steps = self._plan.steps
        # Row-wise sharding exchanges batches of one size: a worker with fewer streams pads.
        self.local_batch_size = -(-streams // world_size) * self._rows_each
        self.counters: Counter[str] = Counter()
        self._prefetch = prefetch_batches
        self._pin_memory = pin_memory
        self._index = index
        targets = TargetEncoder.of(tasks, sample_weight, sampled=split == "train")
        columns = (*transforms.columns, *targets.columns, *keys)
        self._types = {name: manifest.column(name).type for name in columns}
        self._keys = KeyEncoder.of(keys, manifest) if keys else None
        self._transforms, self._targets = transforms, targets
        faults = FaultsConfig() if faults is None else faults
        self.lost = LostRows(index, self._store.name_of, faults)
        self._retry = RetryPolicy(faults.read_attempts, faults.read_timeout_seconds)
        self._read_through = False
        self._collate = Collator(transforms, len(targets.tasks), self.local_batch_size, len(keys))
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
        # The latest reading, which may be ahead of the consumer, and those begun before it is due.
        self._latest: ReadAhead[Made] | None = None
        self._primed: dict[tuple[int, int], ReadAhead[Made]] = {}

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
        self.close()
        self._cursor = dict(state)
        self._resume = self._cursor

    def books(self) -> dict[str, Any]:
        """What this worker has counted and lost so far, as a plain tree."""
        return {"counters": dict(self.counters), "lost": self.lost.state_dict()}

    def load_books(self, books: Sequence[dict[str, Any]]) -> None:
        """Goes on with the sum of what :meth:`books` of some workers gave."""
        self.counters = Counter()
        for tree in books:
            self.counters.update(tree["counters"])
        self.lost.load_state_dict(record for tree in books for record in tree["lost"])

    def sources(self, epoch: int, step: int) -> dict[str, list[int]]:
        """Where this worker's rows of batch number ``step`` lie: row groups by file."""
        groups = self._index.row_groups(self.rows_of(epoch, step))
        return {self._store.name_of(path): numbers for path, numbers in groups.items()}

    def rows_of(self, epoch: int, step: int) -> np.ndarray:
        """int64 (local_batch_size,), batch ``step``'s rows in file order; -1 = padding."""
        each = self._rows_each
        rows_B = np.full(self.local_batch_size, -1, np.int64)
        for at, plan in enumerate(self._plan.epoch(epoch, self._streams)):
            found = plan.source_rows(step * each, (step + 1) * each)
            rows_B[at * each : at * each + found.size] = found
        return rows_B

    def prime(self, epoch: int) -> None:
        """Begins to read ``epoch``, before it is asked for.

        An epoch being read keeps its turn: the next one is read when the last batch of the
        present one is made, within the same ``prefetch_batches``. Primed twice is primed once.
        """
        key = self._key(epoch)
        if key not in self._primed:
            self._primed[key] = self._begin(key, before=self._latest)

    def epoch(self, epoch: int) -> EpochBatches:
        """The batches of an epoch: all, or after ``load_state_dict`` those after its cursor.

        They are read ahead from this call on. What was primed for other epochs is thrown away.
        """
        key = self._key(epoch)
        goes_on = self._resume is not None and self._resume["epoch"] == epoch
        self._resume = None
        reading = self._primed.pop(key, None)
        self.close()
        if reading is None:
            reading = self._begin(key, before=None)
        else:
            reading.claim()
        self._cursor = self._cursor_at(*key)
        if not goes_on:
            self.lost.begin_epoch()
        self.counters["empty_shards"] = len(self._index.empty_shards)
        return EpochBatches(self._take, reading)

    def close(self) -> None:
        """Throws away what was primed."""
        while self._primed:
            self._primed.popitem()[1].close()

    def _key(self, epoch: int) -> tuple[int, int]:
        """The epoch, and the batch it begins with."""
        resume = self._resume
        return epoch, resume["step"] if resume is not None and resume["epoch"] == epoch else 0

    def _begin(self, key: tuple[int, int], before: "ReadAhead[Made] | None") -> ReadAhead[Made]:
        name = f"read-{self._order['split']}"
        reading = ReadAhead(lambda: self._read(*key), self._prefetch, name, before)
        self._latest = reading
        return reading

    def _take(self, made: Made) -> Batch:
        """Enters a batch that is handed out into the books."""
        self.counters.update(made.counters)
        self._cursor = made.batch.cursor
        if made.lost:
            self.lost.count(made.lost)
        return made.batch

    def _cursor_at(self, epoch: int, step: int) -> dict[str, Any]:
        return {"epoch": epoch, "step": step, **self._order}

    def _read(self, epoch: int, first: int) -> Generator[Made, None, None]:
        """Batches from number ``first`` on, in the calling thread."""
        counters: Counter[str] = Counter()
        encoder = RowEncoder(
            self._transforms,
            self._targets,
            self._index,
            self._store.name_of,
            self.lost,
            counters,
            self._keys,
        )
        files = ShardFiles(
            self._store,
            self._index,
            self._types,
            self._transforms.string_columns,
            # Once read to the end, pages need no check, unless what is void depends on it.
            verify=self.lost.faults.skips or not self._read_through,
            retry=self._retry,
            counters=counters,
        )
        reader = ShardReader(
            files,
            self._index,
            list(self._types),
            len(self._streams),
            self.lost,
            encoder.inspect,
            counters,
        )
        try:
            position = first * self._rows_each
            alone = self._rows_each if self._rows_each == self.local_batch_size else None
            walks = [
                Walk(stream_rows(plan, reader, encoder, position, alone))
                for plan in self._plan.epoch(epoch, self._streams)
            ]
            for step in range(first, self.steps):
                segments: list[Segment] = []
                for number, walk in enumerate(walks):
                    segments += walk.take(self._rows_each, number * self._rows_each)
                batch = self._collate(segments, self._cursor_at(epoch, step + 1))
                if self._pin_memory:
                    batch = batch.pin_memory()
                lost = void_rows_by_code((s.rows, s.start, s.stop) for s in segments)
                seen = Counter({"rows": batch.rows, **counters})
                counters.clear()
                yield Made(batch, seen, lost)
            self._read_through = True
        finally:
            reader.close()
