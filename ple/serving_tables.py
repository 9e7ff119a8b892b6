"""Feature tables in serving: plain torch, without TorchRec, over the weights that training left.

Tables of one width and precision lie end to end in one matrix, a *bank*, so that all features with
one id per row are looked up at once, whatever their number. The bank's last row is zeros: what a
missing id gets.

Precisions: ``fp32`` as trained; ``fp16``; ``int8``, each row scaled to 0 … 255 by itself and stored
as its bytes followed by scale and offset as two float32 (the row format of torch's own
``quantized::embedding_bag_byte`` operators, which read it). Small tables stay fp32.

Shape suffixes: B rows, F features with one id per row, R rows of a bank, V ids, W width of a bank,
D width of a table's share of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.tables import FeatureTable, check_tables

Precision = Literal["fp32", "fp16", "int8"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.uint8}
_SCALE_BYTES = 8  # of a row in int8: scale and offset
# Tables below this stay fp32 in every precision: they are few bytes, and most rows read them.
_LARGE_ROWS = 512


@dataclass(frozen=True)
class IdLists:
    """One feature with any number of ids per row; row b has ``ids[offsets[b] : offsets[b + 1]]``.

    Attributes:
        ids_V: int64.
        offsets: int64 (B + 1,), ascending from 0.
        weights_V: float32, of a weighted feature.
    """

    ids_V: Tensor
    offsets: Tensor
    weights_V: Tensor | None = None


@dataclass(frozen=True)
class FeatureIds:
    """The ids of B rows.

    Attributes:
        single_FB: int64, features with one id per row; negative = none.
        lists: the other features.
    """

    single_FB: Tensor
    lists: Sequence[IdLists]


@dataclass(frozen=True)
class BankLayout:
    """One bank: the width and precision of its rows, and its tables by number."""

    width: int
    precision: Precision
    tables: dict[int, FeatureTable]


class ServingTables(nn.Module):
    """The counterpart of :class:`ple.embeddings.FeatureEmbeddings` in a served model.

    Args:
        tables: as in training.
        single: features of the rows of ``FeatureIds.single_FB``.
        lists: features of ``FeatureIds.lists``.
        precision: of the stored rows of large tables; results are float32.

    Attributes:
        width, views, tables: as in :class:`ple.embeddings.FeatureEmbeddings`.
    """

    def __init__(
        self,
        tables: Sequence[FeatureTable],
        single: Sequence[str],
        lists: Sequence[str],
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.views = check_tables(tables)
        self.tables = tuple(tables)
        self.width = sum(table.dim for table in tables if table.view == 0)
        banks = [_Bank(layout, single) for layout in bank_layouts(tables, precision)]
        self.banks = nn.ModuleList(banks)
        self.maps = nn.ModuleDict(
            {map_key(n): _Map(t.rows, t.map.buckets) for n, t in enumerate(tables) if t.map}
        )
        self._single_number = {name: number for number, name in enumerate(single)}
        self._list_number = {name: number for number, name in enumerate(lists)}
        self._pieces = _layout(tables, banks)

    def pieces(self, ids: FeatureIds, weighted_ids: None = None) -> list[list[Tensor]]:
        """For each view the tensors whose concatenation along dimension 1 is its feature vector."""
        banks: list[_Bank] = list(self.banks)  # type: ignore[arg-type]
        looked_up = [bank.singles(self._single_ids(bank, ids)) for bank in banks]
        views: list[list[Tensor]] = [[] for _ in range(self.views)]
        for piece in self._pieces:
            table = self.tables[piece.table]
            if piece.slots is None:
                found_BW = self._pooled(piece.table, banks[piece.bank], ids)
            else:
                found_BW = looked_up[piece.bank][:, piece.slots].flatten(1)
            if table.slices == 1:
                views[table.view].append(found_BW)
            else:
                for view, slice_BD in zip(views, found_BW.split(table.dim, 1), strict=True):
                    view.append(slice_BD)
        return views

    def unknown_ids(self, ids: FeatureIds) -> dict[str, int]:
        """How many ids each map does not know, by feature; 0 and below stand for no id."""
        found = {}
        for number, table in enumerate(self.tables):
            if table.map:
                place = self._list_number.get(table.feature)
                single = self._single_number.get(table.feature)
                ids_V = ids.single_FB[single] if place is None else ids.lists[place].ids_V
                known: _Map = self.maps[map_key(number)]  # type: ignore[assignment]
                found[table.feature] = known.unknown(ids_V)
        return found

    def _single_ids(self, bank: "_Bank", ids: FeatureIds) -> Tensor:
        """Ids of the bank's tables with one id per row, those of a map turned into rows."""
        ids_FB = ids.single_FB.index_select(0, bank.features)
        for number, slot in bank.mapped:
            ids_FB[slot] = self.maps[map_key(number)](ids_FB[slot])
        return ids_FB

    def _pooled(self, number: int, bank: "_Bank", ids: FeatureIds) -> Tensor:
        table = self.tables[number]
        given = ids.lists[self._list_number[table.feature]]
        ids_V = self.maps[map_key(number)](given.ids_V) if table.map else given.ids_V
        weights_V = given.weights_V if table.weighted else None
        rows_V = ids_V + bank.first_row[table.name]
        return bank.pooled(rows_V, given.offsets, table.pooling, weights_V)


@dataclass(frozen=True)
class _Piece:
    """A part of a view's feature vector: neighbouring tables of a bank, or one table of lists.

    ``table`` is the first table; ``slots`` its and its neighbours' place among the bank's tables
    with one id per row, None for lists.
    """

    table: int
    bank: int
    slots: slice | None


def _layout(tables: Sequence[FeatureTable], banks: Sequence["_Bank"]) -> list[_Piece]:
    pieces: list[_Piece] = []
    for number, table in enumerate(tables):
        bank = next(n for n, bank in enumerate(banks) if table.name in bank.first_row)
        slot = banks[bank].slot_of.get(table.name)
        if slot is None:
            pieces.append(_Piece(number, bank, None))
            continue
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and last.slots is not None
            and (last.bank, last.slots.stop) == (bank, slot)
            and tables[last.table].view == table.view
            and table.slices == 1
        ):
            pieces[-1] = _Piece(last.table, bank, slice(last.slots.start, slot + 1))
        else:
            pieces.append(_Piece(number, bank, slice(slot, slot + 1)))
    return pieces


class _Bank(nn.Module):
    """Tables of one width and precision, end to end.

    Attributes:
        first_row: of each table, by name.
        slot_of: place among the tables with one id per row, by name.
        mapped: number and slot of those with a map.

    Buffers:
        rows: (R, W), or (R, W + 8) in int8.
    """

    rows: Tensor
    features: Tensor
    bases: Tensor

    def __init__(self, layout: BankLayout, single: Sequence[str]) -> None:
        super().__init__()
        width, precision, tables = layout.width, layout.precision, layout.tables
        self._precision = precision
        ends = list(accumulate((table.rows for table in tables.values()), initial=0))
        self._nothing = ends.pop()
        names = [table.name for table in tables.values()]
        self.first_row = dict(zip(names, ends, strict=True))
        positions = {name: number for number, name in enumerate(single)}
        alone = [(n, table) for n, table in tables.items() if table.feature in positions]
        self.slot_of = {table.name: slot for slot, (_, table) in enumerate(alone)}
        self.mapped = [(n, slot) for slot, (n, table) in enumerate(alone) if table.map]
        stored = width + (_SCALE_BYTES if precision == "int8" else 0)
        rows = torch.empty(self._nothing + 1, stored, dtype=DTYPES[precision])
        self.register_buffer("rows", rows)
        # On the CPU by name: the module may be built on the meta device, to be given its weights.
        for name, numbers in (
            ("features", [positions[table.feature] for _, table in alone]),
            ("bases", [self.first_row[table.name] for _, table in alone]),
        ):
            values = torch.tensor(numbers, dtype=torch.int64, device="cpu")
            self.register_buffer(name, values, persistent=False)

    def singles(self, ids_FB: Tensor) -> Tensor:
        """Float32 (B, F, W) of the tables with one id per row; zeros where the id is negative."""
        B, F_ = ids_FB.shape[1], ids_FB.shape[0]
        rows_FB = torch.where(ids_FB < 0, self._nothing, ids_FB + self.bases[:, None])
        rows_VW = self._gathered(rows_FB.t().reshape(-1))
        return rows_VW.view(B, F_, rows_VW.shape[1])  # F may be 0: tables of lists alone

    def pooled(
        self, rows_V: Tensor, offsets: Tensor, pooling: str, weights_V: Tensor | None
    ) -> Tensor:
        """Float32 (B, W)."""
        if self._precision == "fp32":
            return _bag(rows_V, self.rows, offsets, pooling, weights_V)
        if self._precision == "fp16":
            index_V = torch.arange(len(rows_V), device=rows_V.device)
            return _bag(index_V, self._gathered(rows_V), offsets, pooling, weights_V)
        sums_BW = _byte_sums(self.rows, rows_V, offsets, weights_V)
        if pooling == "sum":
            return sums_BW
        return sums_BW / offsets.diff().clamp(min=1)[:, None]

    def _gathered(self, rows_V: Tensor) -> Tensor:
        if self._precision == "int8":
            each = torch.arange(len(rows_V) + 1, device=rows_V.device)
            return _byte_sums(self.rows, rows_V, each, None)
        return self.rows.index_select(0, rows_V).float()


class _Map(nn.Module):
    """A map of ids to table rows, as training left it; see :class:`ple.managed_ids.ManagedIds`.

    Buffers:
        ids: int64 (R,), ascending; those no id ever had hold the largest integer, and come last.
        rows: int64 (R,), the table row of each.
    """

    ids: Tensor
    rows: Tensor

    def __init__(self, rows: int, buckets: int) -> None:
        super().__init__()
        self._buckets, self._bucket_rows = buckets, rows // buckets
        self.register_buffer("ids", torch.empty(rows, dtype=torch.int64))
        self.register_buffer("rows", torch.empty(rows, dtype=torch.int64))

    def forward(self, ids_V: Tensor) -> Tensor:
        """Rows of ids; an unknown one has the last row of its bucket, none (negative) stays."""
        position_V = torch.searchsorted(self.ids[:-1], ids_V)
        bucket_V = ids_V.remainder(self._buckets)
        unknown_V = bucket_V * self._bucket_rows + (self._bucket_rows - 1)
        rows_V = torch.where(self.ids[position_V] == ids_V, self.rows[position_V], unknown_V)
        return torch.where(ids_V < 0, ids_V, rows_V)

    def unknown(self, ids_V: Tensor) -> int:
        """How many of the positive ids have no row of their own."""
        position_V = torch.searchsorted(self.ids[:-1], ids_V)
        return int(((self.ids[position_V] != ids_V) & (ids_V > 0)).sum())


def bank_layouts(tables: Sequence[FeatureTable], precision: Precision) -> list[BankLayout]:
    """The banks, in the order in which their tables first come."""
    banks: dict[tuple[int, Precision], BankLayout] = {}
    for number, table in enumerate(tables):
        key = table.dim * table.slices, precision if table.rows >= _LARGE_ROWS else "fp32"
        banks.setdefault(key, BankLayout(*key, {})).tables[number] = table
    return list(banks.values())


def map_key(number: int) -> str:
    # Numbered: a table's name may hold what a module's name may not.
    return f"table_{number}"


def _bag(
    index_V: Tensor, rows_RW: Tensor, offsets: Tensor, pooling: str, weights_V: Tensor | None
) -> Tensor:
    return F.embedding_bag(
        index_V,
        rows_RW,
        offsets,
        mode=pooling,
        per_sample_weights=weights_V,
        include_last_offset=True,
    )


def _byte_sums(rows: Tensor, rows_V: Tensor, offsets: Tensor, weights_V: Tensor | None) -> Tensor:
    """Sums of dequantised rows."""
    sums_BW: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        rows, rows_V, offsets, False, 0, False, weights_V, None, True
    )
    return sums_BW
