"""Which sharding plans can go on from which: the tables' weights and optimizer state together."""

from collections.abc import Mapping
from typing import Any

from pipeline.checkpoint.errors import CheckpointError

# Within a family, the parts of weights and of optimizer state are named alike and cut alike.
_FAMILIES = {
    "table_wise": "whole rows",
    "row_wise": "whole rows",
    "table_row_wise": "whole rows",
    "column_wise": "columns",
    "table_column_wise": "columns",
    "grid_shard": "columns and rows",
    "data_parallel": "copies",
}
_REASONS = {
    "columns": "its optimizer state is kept per part of the columns",
    "columns and rows": "its optimizer state is kept per part of the columns",
    "copies": "the optimizer state of copied tables is kept by the dense side's optimizer",
}


def check_plans(location: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Makes sure that a run with one plan can go on from a checkpoint of another.

    Args:
        location: of the checkpoint.
        saved, present: plans as ``TablePlan.to_tree`` gives them.

    Raises:
        CheckpointError: the state of a table cannot be carried over; the message names all such.
    """
    before = {table["table"]: table["sharding_type"] for table in saved["tables"]}
    refused = []
    for table in present["tables"]:
        name, now = table["table"], table["sharding_type"]
        then = before.get(name)
        if then is None or _family(then) == _family(now):
            continue
        reason = _REASONS.get(_family(then)) or _REASONS[_family(now)]
        refused.append(
            f"table {name!r} was saved {then} and is now {now}, but {reason}: set "
            f"sharding.tables.{name}.types: [{then}]"
        )
    if refused:
        raise CheckpointError(
            f"{location}: cannot be loaded under this sharding plan:\n  " + "\n  ".join(refused)
        )


def _family(sharding_type: str) -> str:
    return _FAMILIES.get(sharding_type, sharding_type)
