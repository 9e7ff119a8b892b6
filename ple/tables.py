"""What a feature table is: plain descriptions, and the checks that a set of them can be built.

Most models read one feature vector. Some read several of the same features: single-task models a
vector of each task's own tables, STEM a slice of each row per task and a shared one. Each such
vector is a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Eviction = Literal["frequency", "recency", "frequency_recency"]

POOLINGS = ("sum", "mean")


@dataclass(frozen=True)
class IdMap:
    """How the map of one table works; see :class:`ple.managed_ids.ManagedIds`.

    Attributes:
        eviction: who loses a row to a new id.
        interval: training steps between two changes of the map.
        buckets: parts of the map; divides the table's rows, and the number of workers divides it.
    """

    eviction: Eviction = "frequency"
    interval: int = 100
    buckets: int = 16


@dataclass(frozen=True)
class FeatureTable:
    """One categorical feature and the table its ids index.

    Attributes:
        name: table name; names the parameter in checkpoints and sharding plans.
        feature: name of the feature; in training its key in the KeyedJaggedTensor.
        rows: ids 0 … rows-1.
        dim: embedding width in one view.
        pooling: ``"sum"`` or ``"mean"`` over the ids of a row; an empty list gives zeros.
        weighted: each id carries a weight that scales its row; pooled by sum.
        view: feature vector the table is for.
        slices: cut each row, ``slices`` times ``dim`` wide, into that many views; 1 = one view.
        map: the ids are any from 0 to 2^63 - 2, which a map learned in training takes to the rows;
            None = they are rows. Not for weighted tables.
    """

    name: str
    feature: str
    rows: int
    dim: int
    pooling: str = "sum"
    weighted: bool = False
    view: int = 0
    slices: int = 1
    map: IdMap | None = None


def check_tables(tables: Sequence[FeatureTable]) -> int:
    """Refuses tables that cannot be built together; returns the number of views.

    Raises:
        ValueError: naming the table.
    """
    if not tables:
        raise ValueError("`tables` is empty; a model without tables takes embeddings=None")
    _check_unique("name", [table.name for table in tables])
    for view in {table.view for table in tables}:
        _check_unique("feature", [table.feature for table in tables if table.view == view])
    for table in tables:
        _check_table(table)
    views = max(max(table.view + 1, table.slices) for table in tables)
    _check_views(tables, views)
    return views


def _check_table(table: FeatureTable) -> None:
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
    if table.weighted and table.map is not None:
        raise ValueError(f"table {table.name!r}: a table with a map takes no weighted ids")


def _check_unique(kind: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"table {kind} {repeated[0]!r} is used twice; make it unique")


def _check_views(tables: Sequence[FeatureTable], views: int) -> None:
    if any(table.slices not in (1, views) or (table.slices > 1 and table.view) for table in tables):
        raise ValueError(f"a table that is cut into slices serves all {views} views; use view 0")
    if any(table.slices > 1 for table in tables):
        if any(table.slices == 1 for table in tables):
            raise ValueError("either all tables are cut into slices or none is")
        return
    layouts = [
        [(table.feature, table.dim) for table in tables if table.view == view]
        for view in range(views)
    ]
    for view, layout in enumerate(layouts):
        if layout != layouts[0]:
            raise ValueError(
                f"view {view} has other features, widths or order than view 0; make them the same"
            )
