"""From the weights that training left to those of a model over :class:`ple.ServingTables`.

Shape suffixes: R rows of a table, W its width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ple.serving_tables import DTYPES, Precision, bank_layouts, map_key
from ple.tables import FeatureTable


def serving_state(
    state: Mapping[str, Tensor], tables: Sequence[FeatureTable], precision: Precision = "fp32"
) -> dict[str, Tensor]:
    """Weights for a ranker over :class:`ServingTables`, from those of one over
    :class:`ple.embeddings.FeatureEmbeddings`.

    Args:
        state: ``Ranker.state_dict()`` of the unsharded model.
        tables: its tables; empty for a model without.
        precision: of the tables' rows in the result; the dense part stays as it is.

    Raises:
        RuntimeError: a table's weights are not in `state`.
    """
    served = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in state.items()
        if not name.startswith("embeddings.")
    }
    for number, layout in enumerate(bank_layouts(tables, precision)):
        parts = [_table_weight(state, table) for table in layout.tables.values()]
        nothing = torch.zeros(1, parts[0].shape[1])
        served[f"embeddings.banks.{number}.rows"] = torch.cat(
            [_stored(part, layout.precision) for part in (*parts, nothing)]
        )
    for number, table in enumerate(tables):
        if table.map:
            slot_ids, slot_rows = _slots(state, table)
            order = torch.argsort(slot_ids, stable=True)
            served[f"embeddings.maps.{map_key(number)}.ids"] = slot_ids[order]
            served[f"embeddings.maps.{map_key(number)}.rows"] = slot_rows[order]
    return served


def _table_weight(state: Mapping[str, Tensor], table: FeatureTable) -> Tensor:
    kind = "weighted" if table.weighted else "unweighted"
    if table.map is None:
        return _entry(state, f"embeddings.{kind}.", f"embedding_bags.{table.name}.weight")
    return _entry(
        state, "embeddings.managed.", f"._embedding_module.embedding_bags.{table.name}.weight"
    )


def _slots(state: Mapping[str, Tensor], table: FeatureTable) -> tuple[Tensor, Tensor]:
    place = f"._managed_collision_collection._managed_collision_modules.{table.name}."
    ids, rows = (
        _entry(state, "embeddings.managed.", place + name) for name in ("slot_ids", "slot_rows")
    )
    return ids, rows


def _entry(state: Mapping[str, Tensor], first: str, last: str) -> Tensor:
    found = [name for name in state if name.startswith(first) and name.endswith(last)]
    if len(found) != 1:
        raise RuntimeError(f"Missing key(s) in the weights: {first}…{last}")
    return state[found[0]].detach().cpu()


def _stored(weight_RW: Tensor, precision: Precision) -> Tensor:
    if precision == "int8":
        packed: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(weight_RW.contiguous())
        return packed
    return weight_RW.to(DTYPES[precision])
