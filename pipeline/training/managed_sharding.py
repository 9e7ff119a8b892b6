"""Sharding of tables whose rows change hands between ids: a row starts anew with every id."""

from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

import ple


class ManagedSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """TorchRec's sharder of managed collections, with :class:`_ShardedCollection` for its own."""

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedCollisionEmbeddingBagCollection:
        assert device is not None
        return _ShardedCollection(
            module,
            params,
            ebc_sharder=self._e_sharder,
            mc_sharder=self._mc_sharder,
            env=env,
            device=device,
        )


class _ShardedCollection(ShardedManagedCollisionEmbeddingBagCollection):
    """Clears a row and its optimizer state when another id gets it.

    TorchRec's own version clears the optimizer state of row-wise Adagrad only, by an operation
    that CPUs do not have, and draws new rows from a generator, in an order that depends on the
    number of workers.
    """

    @torch.no_grad()
    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        for table, rows in evictions_per_table.items():
            if rows is None:
                continue
            tables, position = self._table_to_tbe_and_index[table]
            number = int(position)
            tables.split_embedding_weights()[number][rows] = 0.0
            states: list[list[Tensor]] = tables.split_optimizer_states()
            for state in states[number] if states else ():  # SGD has none
                state[rows] = 0.0


def managed_tables(ranker: ple.Ranker) -> dict[str, ple.IdMap]:
    """The tables with a map, by name."""
    tables: Any = () if ranker.embeddings is None else ranker.embeddings.tables
    return {table.name: table.map for table in tables if table.map is not None}
