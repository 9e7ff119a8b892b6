"""Zero-collision hashing: a map from 64-bit ids to table rows that learns which ids to keep.

TorchRec's managed collision modules remap ids while the model trains: an id seen often enough gets
a table row of its own, and gives it up when others are seen more. :class:`ManagedIds` is such a
module whose outcome does not depend on the number of workers: the map is cut into a fixed number
of buckets, an id lives in bucket ``id modulo buckets``, each bucket owns the same share of the rows
and evicts by itself, and workers own whole buckets (TorchRec's own module cuts its map anew for
every worker count). The eviction rules are TorchRec's.

Shapes: R rows of the map, U distinct ids of an interval.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    ManagedCollisionModule,
    MCHEvictionPolicy,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from ple.tables import Eviction, IdMap

# Stands in a slot that holds no id; ids are below it.
FREE = torch.iinfo(torch.int64).max
_POLICIES: dict[str, type[MCHEvictionPolicy]] = {
    "frequency": LFU_EvictionPolicy,
    "recency": LRU_EvictionPolicy,
    "frequency_recency": DistanceLFU_EvictionPolicy,
}


def managed_collection(
    configs: Sequence[EmbeddingBagConfig], maps: Sequence[IdMap], device: torch.device | None
) -> ManagedCollisionEmbeddingBagCollection:
    """Tables whose ids are mapped to rows by a map each; it takes ids from 0 to 2^63 - 2.

    Raises:
        ValueError: the buckets do not divide a table's rows; the message names the table.
    """
    modules: dict[str, ManagedCollisionModule] = {}
    for config, map_ in zip(configs, maps, strict=True):
        rows, buckets = config.num_embeddings, map_.buckets
        if buckets < 1 or rows % buckets or rows < 2 * buckets:
            raise ValueError(
                f"table {config.name!r}: {rows} rows cannot be cut into {buckets} buckets of equal "
                "size, 2 rows or more; change `rows` or `buckets`"
            )
        modules[config.name] = ManagedIds(
            rows, rows // buckets, buckets, map_.eviction, map_.interval, device=device
        )
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=list(configs), device=device),
        ManagedCollisionCollection(modules, list(configs)),
    )


class ManagedIds(ManagedCollisionModule):
    """The map of one table, or one worker's buckets of it.

    The last row of every bucket is the row of the bucket's unknown ids; the others are held by one
    id each. In training mode the ids of ``interval`` calls are collected; then those that the
    eviction rule prefers to present holders take over their rows. In evaluation mode nothing moves.

    Args:
        rows: R of this part, a multiple of rows per bucket.
        bucket_rows: rows of one bucket, 2 or more.
        buckets: buckets of the whole map.
        eviction: who loses a row: the id seen least often (``frequency``), longest ago
            (``recency``), or with the fewest sightings per step since the last
            (``frequency_recency``).
        interval: training steps between two changes of the map.
        first_row: first row of this part.
        device: where the map lives.

    Buffers:
        slot_ids: int64 (R,), the id of each slot, ascending within a bucket, ``FREE`` where none.
        slot_rows: int64 (R,), the table row of each slot.
        counts, last_access_iter: int64 (R,), what the eviction rule keeps of each slot.
    """

    slot_ids: Tensor
    slot_rows: Tensor
    _current_iter_tensor: Tensor

    def __init__(
        self,
        rows: int,
        bucket_rows: int,
        buckets: int,
        eviction: Eviction,
        interval: int,
        first_row: int = 0,
        device: torch.device | None = None,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        assert bucket_rows > 1, bucket_rows
        assert rows % bucket_rows == 0 == first_row % bucket_rows, (first_row, rows, bucket_rows)
        # The places where the map may be cut; the same on any number of workers.
        segments = [bucket * bucket_rows for bucket in range(buckets + 1)]
        super().__init__(device, segments)
        self._rows, self._bucket_rows, self._buckets = rows, bucket_rows, buckets
        self._eviction: Eviction = eviction
        self._interval, self._first_row = interval, first_row
        self._policy = _POLICIES[eviction]()
        self.register_buffer("slot_ids", torch.full((rows,), FREE, device=device))
        self.register_buffer("slot_rows", torch.arange(first_row, first_row + rows, device=device))
        self._kept_names = [name for name, kept, _ in self._policy.metadata_info if kept]
        for name in self._kept_names:
            self.register_buffer(name, torch.zeros(rows, dtype=torch.int64, device=device))
        self._seen: list[Tensor] = []
        self._seen_at: list[int] = []
        self._replaced: Tensor | None = None
        self._index: tuple[Tensor, Tensor] | None = None

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        return features

    def forward(
        self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True
    ) -> dict[str, JaggedTensor]:
        return self.remap(self.profile(features))

    @torch.no_grad()
    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Collects ids in training mode; every ``interval`` calls the map changes."""
        if not self.training:
            return features
        self._current_iter_tensor += 1
        self._seen += [feature.values() for feature in features.values()]
        self._seen_at.append(sum(feature.values().numel() for feature in features.values()))
        if len(self._seen_at) == self._interval:
            self._change(int(self._current_iter_tensor))
            self._seen, self._seen_at = [], []
        return features

    @torch.no_grad()
    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """Ids → rows of the whole table."""
        if self._index is None:
            order = torch.argsort(self.slot_ids, stable=True)
            self._index = self.slot_ids[order], self.slot_rows[order]
        ids, rows = self._index
        remapped = {}
        for name, feature in features.items():
            values = feature.values()
            position = torch.searchsorted(ids[:-1], values)
            bucket = values.remainder(self._buckets)
            unknown = bucket * self._bucket_rows + (self._bucket_rows - 1)
            remapped[name] = JaggedTensor(
                values=torch.where(ids[position] == values, rows[position], unknown),
                lengths=feature.lengths(),
                offsets=feature.offsets(),
                weights=feature.weights_or_none(),
            )
        return remapped

    def evict(self) -> Tensor | None:
        """Rows of the whole table that changed hands since the last call, or None."""
        replaced, self._replaced = self._replaced, None
        return replaced

    def _change(self, step: int) -> None:
        """Lets the ids of the interval compete with those that hold rows."""
        ids = torch.cat(self._seen)
        first = step - len(self._seen_at) + 1
        steps = torch.repeat_interleave(
            torch.arange(first, step + 1, device=ids.device),
            torch.tensor(self._seen_at, device=ids.device),
        )
        ids_U, inverse, counts_U = torch.unique(ids, return_inverse=True, return_counts=True)
        seen = self._policy.coalesce_history_metadata(
            step, {"last_access_iter": steps}, counts_U, inverse
        )
        bucket_U = ids_U.remainder(self._buckets)
        replaced = []
        for start in range(0, self._rows, self._bucket_rows):
            own = bucket_U == (self._first_row + start) // self._bucket_rows
            replaced.append(
                self._change_bucket(
                    slice(start, start + self._bucket_rows),
                    step,
                    ids_U[own],
                    counts_U[own],
                    {name: values[own] for name, values in seen.items()},
                )
            )
        self._replaced = torch.cat(
            [*replaced, *([] if self._replaced is None else [self._replaced])]
        )
        self._index = None

    def _change_bucket(
        self, bucket: slice, step: int, ids: Tensor, counts: Tensor, seen: dict[str, Tensor]
    ) -> Tensor:
        """The same for one bucket; returns the rows that changed hands."""
        slot_ids, slot_rows = self.slot_ids[bucket], self.slot_rows[bucket]
        kept = {name: self.get_buffer(name)[bucket] for name in self._kept_names}
        order = torch.argsort(counts, descending=True, stable=True)
        ids, counts = ids[order], counts[order]
        position = torch.searchsorted(slot_ids[:-1], ids)
        held = slot_ids[position] == ids
        losers, winners = self._policy.update_metadata_and_generate_eviction_scores(
            step, self._bucket_rows, order, counts, held, position[held], kept, seen
        )
        slot_ids[losers] = ids[~held][winners]
        replaced = slot_rows[losers]
        # Ascending again; equal (free) slots keep their order, so the unknown ids' row stays last.
        order = torch.argsort(slot_ids, stable=True)
        for values in (slot_ids, slot_rows, *kept.values()):
            values.copy_(values[order])
        return replaced

    def collected(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the buffers: calls so far, and the ids collected since
        the map last changed with the number of them in each call."""
        none = self.slot_ids.new_empty(0)
        return {
            "calls": self._current_iter_tensor.clone(),
            "ids": torch.cat([*self._seen, none]),
            "sizes": none.new_tensor(self._seen_at),
        }

    def load_collected(self, parts: Sequence[dict[str, Tensor]]) -> None:
        """Goes on from what :meth:`collected` gave, of this part or of all parts of a map that was
        cut differently; ids of other parts' buckets are left out."""
        self._current_iter_tensor.copy_(parts[0]["calls"])
        first = self._first_row // self._bucket_rows
        stop = first + self._rows // self._bucket_rows
        calls = [part["ids"].to(self.slot_ids.device) for part in parts]
        calls = [ids.split(part["sizes"].tolist()) for ids, part in zip(calls, parts, strict=True)]
        self._seen, self._seen_at = [], []
        for call in zip(*calls, strict=True):
            ids = torch.cat(call)
            bucket = ids.remainder(self._buckets)
            self._seen.append(ids[(bucket >= first) & (bucket < stop)])
            self._seen_at.append(self._seen[-1].numel())

    def output_size(self) -> int:
        return self._rows

    def input_size(self) -> int:
        # 0 tells TorchRec to send an id to the worker of bucket `id modulo buckets`.
        return 0

    def buckets(self) -> int:
        return self._buckets

    def open_slots(self) -> Tensor:
        return (self.slot_ids == FREE).sum() - self._rows // self._bucket_rows

    def validate_state(self) -> None:
        """Runs after a state was loaded, which makes the search index stale."""
        self._index = None
        self._seen, self._seen_at = [], []

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int],
        device: torch.device | None = None,
    ) -> "ManagedIds":
        """One worker's part: whole buckets."""
        first, stop = output_id_range
        return ManagedIds(
            stop - first,
            self._bucket_rows,
            self._buckets,
            self._eviction,
            self._interval,
            first,
            device or self.device,
        )
