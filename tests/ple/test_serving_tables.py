"""Plain tables give what TorchRec's give, over the same weights."""

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ple import (
    FeatureEmbeddings,
    FeatureIds,
    FeatureTable,
    IdLists,
    IdMap,
    ServingTables,
    serving_state,
)

MAP = IdMap(interval=1, buckets=2)
SINGLE = ["city", "shop", "visitor", "device"]
LISTS = ["tags", "topics", "liked", "seen"]
TABLES = [
    FeatureTable("city", "city", 10, 4),
    FeatureTable("tags", "tags", 7, 4),
    FeatureTable("shop", "shop", 6, 4),
    FeatureTable("device", "device", 5, 3),
    FeatureTable("topics", "topics", 8, 3, pooling="mean"),
    FeatureTable("liked", "liked", 9, 4, weighted=True),
    FeatureTable("visitor", "visitor", 8, 4, map=MAP),
    FeatureTable("seen", "seen", 8, 3, pooling="mean", map=MAP),
]
B = 6
ROWS = {"city": 10, "shop": 6, "device": 5, "tags": 7, "topics": 8, "liked": 9}


def a_batch(seed: int) -> tuple[FeatureIds, KeyedJaggedTensor, KeyedJaggedTensor]:
    """The same ids twice: as serving has them, and as training has them."""
    draw = torch.Generator().manual_seed(seed)

    def ids(name: str, count: int) -> Tensor:
        return torch.randint(ROWS.get(name, 40), (count,), generator=draw)

    single = {name: ids(name, B) for name in SINGLE}
    single["shop"][2] = -1  # has none
    lists = {}
    for name in LISTS:
        lengths = torch.randint(0, 4, (B,), generator=draw)
        lengths[1] = 0
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        lists[name] = IdLists(ids(name, int(offsets[-1])), offsets)
    weights = torch.rand(len(lists["liked"].ids_V), generator=draw)
    lists["liked"] = IdLists(lists["liked"].ids_V, lists["liked"].offsets, weights)
    values, lengths_of = {}, {}
    for name, ids_B in single.items():
        values[name], lengths_of[name] = ids_B[ids_B >= 0], (ids_B >= 0).long()
    for name, given in lists.items():
        values[name], lengths_of[name] = given.ids_V, given.offsets.diff()
    keys = [name for name in values if name != "liked"]
    plain = KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([values[key] for key in keys]),
        lengths=torch.cat([lengths_of[key] for key in keys]),
    )
    weighted = KeyedJaggedTensor(
        keys=["liked"], values=values["liked"], lengths=lengths_of["liked"], weights=weights
    )
    return FeatureIds(torch.stack(list(single.values())), list(lists.values())), plain, weighted


def trained(tables: list[FeatureTable]) -> FeatureEmbeddings:
    """Tables of which the mapped ones know some ids, all with weights of their own."""
    torch.manual_seed(0)
    embeddings = FeatureEmbeddings(tables)
    with torch.no_grad():
        for seed in range(3):
            embeddings.pieces(*a_batch(seed)[1:])
        for parameter in embeddings.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return embeddings.eval()


def served(embeddings: FeatureEmbeddings, precision: str) -> ServingTables:
    state = {f"embeddings.{name}": value for name, value in embeddings.state_dict().items()}
    with torch.device("meta"):
        tables = ServingTables(embeddings.tables, SINGLE, LISTS, precision)  # type: ignore[arg-type]
    weights = serving_state(state, embeddings.tables, precision)  # type: ignore[arg-type]
    weights = {name.removeprefix("embeddings."): value for name, value in weights.items()}
    tables.load_state_dict(weights, assign=True)
    return tables


KINDS = {
    "one view": TABLES,
    "a view per task": [
        FeatureTable(f"{t.name}@{view}", *list(vars(t).values())[1:6], view=view, map=t.map)
        for view in range(2)
        # The last table of a view and the first of the next could share a look-up, but must not.
        for t in (*TABLES[:6], TABLES[7], TABLES[6])
    ],
    "slices": [
        FeatureTable(t.name, t.feature, t.rows, t.dim, t.pooling, t.weighted, slices=3, map=t.map)
        for t in TABLES
    ],
}


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-6), ("fp16", 4e-3), ("int8", 5e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_training(kind: str, precision: str, error: float) -> None:
    embeddings = trained(KINDS[kind])
    tables = served(embeddings, precision)
    assert (tables.views, tables.width) == (embeddings.views, embeddings.width)
    for seed in (1, 7):
        ids, *in_training = a_batch(seed)
        expected = embeddings.pieces(*in_training)
        got = tables.pieces(ids)
        assert len(got) == len(expected) == {"one view": 1, "slices": 3}.get(kind, 2)
        for got_view, expected_view in zip(got, expected, strict=True):
            torch.testing.assert_close(
                torch.cat(got_view, 1), torch.cat(expected_view, 1), atol=error, rtol=0
            )


@pytest.fixture(autouse=True)
def every_table_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ple.serving_tables._LARGE_ROWS", 2)


def test_small_tables_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ple.serving_tables._LARGE_ROWS", 9)
    embeddings = trained(TABLES)
    tables = served(embeddings, "int8")
    kinds = {(bank.rows.dtype, tuple(bank.first_row)) for bank in tables.banks}  # type: ignore[union-attr, arg-type]
    assert kinds == {
        (torch.uint8, ("city", "liked")),
        (torch.float32, ("tags", "shop", "visitor")),
        (torch.float32, ("device", "topics", "seen")),
    }
    ids, *in_training = a_batch(5)
    for got, expected in zip(tables.pieces(ids), embeddings.pieces(*in_training), strict=True):
        difference_BD = (torch.cat(got, 1) - torch.cat(expected, 1)).abs()
        assert 0 < difference_BD.max() < 5e-2
        assert difference_BD[:, 4:12].max() < 1e-6  # tags and shop


def test_int8_takes_a_byte_per_number_and_eight_per_row() -> None:
    embeddings = trained(TABLES)
    sizes = {
        precision: served(embeddings, precision).banks[0].rows.nbytes  # type: ignore[union-attr]
        for precision in ("fp32", "fp16", "int8")
    }
    rows = 10 + 7 + 6 + 9 + 8 + 1
    assert sizes == {"fp32": rows * 16, "fp16": rows * 8, "int8": rows * (4 + 8)}


def test_a_constant_row_survives_int8() -> None:
    embeddings = FeatureEmbeddings([FeatureTable("city", "city", 3, 4)])
    with torch.no_grad():
        next(embeddings.parameters()).copy_(torch.tensor([[0.0] * 4, [2.5] * 4, [-1, 0, 1, 2]]))
    ids = FeatureIds(torch.tensor([[0, 1, 2, -1]] * 4), [])
    (view,) = served(embeddings, "int8").pieces(ids)
    expected = torch.tensor([[0.0] * 4, [2.5] * 4, [-1, 0, 1, 2], [0.0] * 4])
    torch.testing.assert_close(view[0], expected)


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"embedding_bags\.city\.weight"):
        serving_state({}, TABLES)
