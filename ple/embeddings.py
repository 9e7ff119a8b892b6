"""Feature tables: id lists in, one pooled vector per row out, through TorchRec collections.

Shape suffixes: B rows, D sum of the tables' widths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

POOLINGS = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


@dataclass(frozen=True)
class FeatureTable:
    """One categorical feature and the table its ids index.

    Attributes:
        name: table name; names the parameter in checkpoints and sharding plans.
        feature: key of the feature in the KeyedJaggedTensor.
        rows: ids 0 … rows-1.
        dim: embedding width.
        pooling: ``"sum"`` or ``"mean"`` over the ids of a row; an empty list gives zeros.
        weighted: each id carries a weight that scales its row; pooled by sum.
    """

    name: str
    feature: str
    rows: int
    dim: int
    pooling: str = "sum"
    weighted: bool = False


class FeatureEmbeddings(nn.Module):
    """Pooled embeddings of all categorical features, in the order of ``tables``.

    Weighted and unweighted features live in two collections, so that only those which need weights
    carry them. Either collection may be replaced by its sharded counterpart
    (DistributedModelParallel does): features are put in order by name, because a sharded collection
    returns them in the order of its plan.

    Table rows start uniform in ±1/√dim: a pooled id list then has the same scale whatever the
    table's size. Tables on the meta device get these values when they are materialised.

    Args:
        tables: the features; names and features are unique.
        device: of the tables; "meta" leaves them to DistributedModelParallel.

    Attributes:
        unweighted, weighted: the collections, None where no table needs one.
        width: D, the sum of the widths.

    Raises:
        ValueError: a table cannot be built; the message names it.
    """

    def __init__(
        self, tables: Sequence[FeatureTable], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        _check_tables(tables)
        device = None if device is None else torch.device(device)
        self.tables = tuple(tables)
        self.width = sum(table.dim for table in tables)
        self.unweighted = _collection([t for t in tables if not t.weighted], False, device)
        self.weighted = _collection([t for t in tables if t.weighted], True, device)
        self._order = [table.feature for table in tables]

    def forward(
        self, ids: KeyedJaggedTensor | None, weighted_ids: KeyedJaggedTensor | None
    ) -> Tensor:
        """Pooled embeddings [B, D].

        Args:
            ids: the unweighted features, keys in any order; None if there are none.
            weighted_ids: the weighted features with weights; None if there are none.
        """
        pieces = self.pieces(ids, weighted_ids)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def pieces(
        self, ids: KeyedJaggedTensor | None, weighted_ids: KeyedJaggedTensor | None
    ) -> list[Tensor]:
        """The tensors whose concatenation along dimension 1 is the output of :meth:`forward`.

        For a caller who concatenates other columns too and would rather copy once.
        """
        # Both collections start before either result is touched: under
        # DistributedModelParallel a result is an awaitable, and touching it waits.
        results: list[KeyedTensor] = []
        for name, collection, given in (
            ("ids", self.unweighted, ids),
            ("weighted_ids", self.weighted, weighted_ids),
        ):
            if collection is not None:
                if given is None:
                    raise ValueError(f"`{name}` is None, but there are tables that need it")
                results.append(collection(given))
        if len(results) == 1 and results[0].keys() == self._order:
            return [results[0].values()]
        by_name: dict[str, Tensor] = {}
        for result in results:
            parts = result.values().split(result.length_per_key(), dim=1)
            by_name.update(zip(result.keys(), parts, strict=True))
        return [by_name[feature] for feature in self._order]


def _check_tables(tables: Sequence[FeatureTable]) -> None:
    if not tables:
        raise ValueError("`tables` is empty; a model without tables takes embeddings=None")
    for kind, values in (
        ("name", [table.name for table in tables]),
        ("feature", [table.feature for table in tables]),
    ):
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise ValueError(f"table {kind} {repeated[0]!r} is used twice; make it unique")
    for table in tables:
        if table.rows < 1 or table.dim < 1:
            raise ValueError(
                f"table {table.name!r}: rows ({table.rows}) and dim ({table.dim}) must be positive"
            )
        if table.pooling not in POOLINGS:
            raise ValueError(
                f"table {table.name!r}: pooling {table.pooling!r} is unknown;"
                f" choose one of {', '.join(POOLINGS)}"
            )
        if table.weighted and table.pooling != "sum":
            raise ValueError(
                f"table {table.name!r}: weighted ids are pooled by sum; set pooling to 'sum'"
            )


def _collection(
    tables: Sequence[FeatureTable], weighted: bool, device: torch.device | None
) -> EmbeddingBagCollection | None:
    if not tables:
        return None
    configs = [
        EmbeddingBagConfig(
            name=table.name,
            feature_names=[table.feature],
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            pooling=POOLINGS[table.pooling],
            init_fn=partial(
                nn.init.uniform_, a=-1 / math.sqrt(table.dim), b=1 / math.sqrt(table.dim)
            ),
        )
        for table in tables
    ]
    return EmbeddingBagCollection(configs, is_weighted=weighted, device=device)
