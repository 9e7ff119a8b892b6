"""Feature tables in training: id lists in, pooled vectors out, through TorchRec collections.

:mod:`ple.serving_tables` is their counterpart without TorchRec.

Shape suffixes: B rows, D sum of the tables' widths.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ple.lone_lookup import holds_all, look_up
from ple.managed_ids import managed_collection
from ple.started_ids import StartedIds
from ple.tables import FeatureTable, check_tables

_POOLINGS = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


class FeatureEmbeddings(nn.Module):
    """Pooled embeddings of all categorical features, in the order of ``tables``.

    Weighted and unweighted features live in two collections, so that only those which need weights
    carry them. Either collection may be replaced by its sharded counterpart
    (DistributedModelParallel does): features are put in order by name, because a sharded collection
    returns them in the order of its plan.

    Table rows start uniform in ±1/√dim: a pooled id list then has the same scale whatever the
    table's size or number of slices. Tables on the meta device get these values when they are
    materialised.

    Args:
        tables: the features, in the same order for every view; names are unique, features within
            a view. Every view has all of its features, and the same width.
        device: of the tables; "meta" leaves them to DistributedModelParallel.

    Attributes:
        unweighted, weighted: the collections, None where no table needs one.
        managed: collections of the tables with a map, one for each view that has any.
        width: D, the sum of a view's widths.
        views: number of feature vectors.
        watch: if set, told of what each collection gives, as it gives it.

    Raises:
        ValueError: a table cannot be built; the message names it.
    """

    def __init__(
        self, tables: Sequence[FeatureTable], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.views = check_tables(tables)
        device = None if device is None else torch.device(device)
        self.tables = tuple(tables)
        self.width = sum(table.dim for table in tables if table.view == 0)
        plain = [table for table in tables if table.map is None]
        self.unweighted = _collection([t for t in plain if not t.weighted], False, device)
        self.weighted = _collection([t for t in plain if t.weighted], True, device)
        self._keys = _output_keys(tables)
        # TorchRec's managed collections have no two tables of one feature: one for each view.
        managed = [[t for t in tables if t.map and t.view == view] for view in range(self.views)]
        self.managed = nn.ModuleList(_managed(part, device) for part in managed if part)
        self._managed_keys = [
            {t.feature: f"{t.feature}@{t.name}" for t in part} for part in managed if part
        ]
        self.watch: Callable[[Any], None] | None = None
        self._plain_features = list(dict.fromkeys(t.feature for t in plain if not t.weighted))

    def start(
        self,
        ids: KeyedJaggedTensor | None,
        weighted_ids: KeyedJaggedTensor | None,
        stream: torch.cuda.Stream | None = None,
    ) -> StartedIds | None:
        """Sends ids ahead; the forward pass takes the result in place of ``ids``.

        Only for sharded collections. None where tables have a map: their rows are found in the
        order of steps.
        """
        if self.managed:
            return None
        parts = {"ids": (self.unweighted, ids), "weighted_ids": (self.weighted, weighted_ids)}
        used: Any = {name: part for name, part in parts.items() if part[0] is not None}
        return StartedIds(used, stream)

    def forward(
        self, ids: KeyedJaggedTensor | None, weighted_ids: KeyedJaggedTensor | None
    ) -> Tensor:
        """Pooled embeddings [B, D] of the first view.

        Args:
            ids: the unweighted features, keys in any order; None if there are none.
            weighted_ids: the weighted features with weights; None if there are none.
        """
        pieces = self.pieces(ids, weighted_ids)[0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def pieces(
        self,
        ids: KeyedJaggedTensor | StartedIds | None,
        weighted_ids: KeyedJaggedTensor | None,
    ) -> list[list[Tensor]]:
        """For each view the tensors whose concatenation along dimension 1 is its feature vector.

        For a caller who concatenates other columns too and would rather copy once.
        """
        # All collections start before any result is touched: under
        # DistributedModelParallel a result is an awaitable, and touching it waits.
        results: list[KeyedTensor] = []
        managed: list[KeyedTensor] = []
        started = ids if isinstance(ids, StartedIds) else None
        plain_ids = None if isinstance(ids, StartedIds) else ids
        if self.managed:
            if plain_ids is None:
                raise ValueError("`ids` is None, but there are tables that need it")
            managed = self._managed_results(plain_ids)
            plain_ids = _only(plain_ids, self._plain_features)
        for name, collection, given in (
            ("ids", self.unweighted, plain_ids),
            ("weighted_ids", self.weighted, weighted_ids),
        ):
            if collection is None:
                continue
            if started is not None:
                results.append(self._watched(started.look_up(name)))
            elif given is not None:
                look = look_up if holds_all(collection) else _call
                results.append(self._watched(look(collection, given)))
            else:
                raise ValueError(f"`{name}` is None, but there are tables that need it")
        alone = self.views == 1 and not managed and len(results) == 1
        if alone and results[0].keys() == self._keys:
            return [[results[0].values()]]
        by_key: dict[str, Tensor] = {}
        for result in results:
            parts = result.values().split(result.length_per_key(), dim=1)
            by_key.update(zip(result.keys(), parts, strict=True))
        for result, keys in zip(managed, self._managed_keys, strict=True):
            parts = result.values().split(result.length_per_key(), dim=1)
            by_key.update(zip(map(keys.__getitem__, result.keys()), parts, strict=True))
        views: list[list[Tensor]] = [[] for _ in range(self.views)]
        for table, key in zip(self.tables, self._keys, strict=True):
            if table.slices == 1:
                views[table.view].append(by_key[key])
            else:
                for view, slice_BD in zip(views, by_key[key].split(table.dim, 1), strict=True):
                    view.append(slice_BD)
        return views

    def _managed_results(self, ids: KeyedJaggedTensor) -> list[KeyedTensor]:
        return [
            self._watched(collection(_only(ids, list(keys))))[0]
            for collection, keys in zip(self.managed, self._managed_keys, strict=True)
        ]

    def _watched(self, result: Any) -> Any:
        if self.watch is not None:
            self.watch(result)
        return result


def _call(collection: nn.Module, ids: KeyedJaggedTensor) -> Any:
    return collection(ids)


def _only(ids: KeyedJaggedTensor, features: list[str]) -> KeyedJaggedTensor:
    """The ids of some features."""
    keys = ids.keys()
    if keys == features or not features:
        return ids
    position = {key: number for number, key in enumerate(keys)}
    return ids.permute([position[feature] for feature in features])


def _output_keys(tables: Sequence[FeatureTable]) -> list[str]:
    """What TorchRec calls each table's output: feature@table where tables share the feature.

    Tables with a map always have the long name.
    """
    features = [(table.feature, table.weighted) for table in tables]
    return [
        f"{table.feature}@{table.name}"
        if table.map or features.count((table.feature, table.weighted)) > 1
        else table.feature
        for table in tables
    ]


def _collection(
    tables: Sequence[FeatureTable], weighted: bool, device: torch.device | None
) -> EmbeddingBagCollection | None:
    if not tables:
        return None
    uniform = [
        partial(nn.init.uniform_, a=-1 / math.sqrt(table.dim), b=1 / math.sqrt(table.dim))
        for table in tables
    ]
    configs = [_config(table, init) for table, init in zip(tables, uniform, strict=True)]
    return EmbeddingBagCollection(configs, is_weighted=weighted, device=device)


def _managed(
    tables: Sequence[FeatureTable], device: torch.device | None
) -> ManagedCollisionEmbeddingBagCollection:
    # Rows change hands: a row starts at zero with every id that gets it.
    configs = [_config(table, nn.init.zeros_) for table in tables]
    return managed_collection(configs, [t.map for t in tables if t.map is not None], device)


def _config(table: FeatureTable, init: Callable[[Tensor], Tensor | None]) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=table.name,
        feature_names=[table.feature],
        num_embeddings=table.rows,
        embedding_dim=table.dim * table.slices,
        pooling=_POOLINGS[table.pooling],
        init_fn=init,
    )
