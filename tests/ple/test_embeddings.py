import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor, KeyedTensor

from ple import FeatureEmbeddings, FeatureTable

# name, ids per row, weights per row or None; three rows, empty lists among them
IDS = {
    "city": [[3], [0], [9]],
    "tags": [[1, 1, 4], [], [2]],
    "topics": [[5, 6], [7], []],
    "watched": [[0, 2], [4], []],
    "liked": [[], [1, 1], [3]],
}
WEIGHTS = {"watched": [[0.5, -2.0], [3.0], []], "liked": [[], [1.0, 0.25], [0.0]]}
TABLES = [
    FeatureTable("t_watched", "watched", 5, 3, weighted=True),
    FeatureTable("t_city", "city", 10, 4),
    FeatureTable("t_topics", "topics", 8, 2, pooling="mean"),
    FeatureTable("t_liked", "liked", 4, 6, weighted=True),
    FeatureTable("t_tags", "tags", 6, 5),
]


def jagged(*features: str) -> KeyedJaggedTensor:
    rows = [row for feature in features for row in IDS[feature]]
    weights = [w for feature in features for row in WEIGHTS.get(feature, []) for w in row]
    return KeyedJaggedTensor(
        list(features),
        torch.tensor([i for row in rows for i in row]),
        torch.tensor(weights) if weights else None,
        lengths=torch.tensor([len(row) for row in rows]),
    )


def pooled(embeddings: FeatureEmbeddings, table: FeatureTable) -> np.ndarray:
    """One table in float64, bag by bag."""
    state = {name.split(".")[-2]: value for name, value in embeddings.state_dict().items()}
    weight = state[table.name].double().numpy()
    rows = []
    for row, ids in enumerate(IDS[table.feature]):
        total = np.zeros(table.dim)
        for position, i in enumerate(ids):
            scale = WEIGHTS[table.feature][row][position] if table.weighted else 1.0
            total += np.float32(scale) * weight[i]
        rows.append(total / len(ids) if table.pooling == "mean" and ids else total)
    return np.stack(rows)


def expected(embeddings: FeatureEmbeddings) -> np.ndarray:
    return np.concatenate([pooled(embeddings, table) for table in embeddings.tables], axis=1)


def test_sum_mean_and_weighted_features_in_table_order() -> None:
    embeddings = FeatureEmbeddings(TABLES)
    out = embeddings(jagged("tags", "city", "topics"), jagged("liked", "watched"))
    assert embeddings.width == 20
    assert out.shape == (3, 20)
    np.testing.assert_allclose(out.detach().numpy(), expected(embeddings), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighted", [True, False])
def test_one_kind_of_feature_alone(weighted) -> None:
    tables = [table for table in TABLES if table.weighted == weighted]
    embeddings = FeatureEmbeddings(tables)
    given = jagged(*(table.feature for table in tables))
    out = embeddings(None, given) if weighted else embeddings(given, None)
    assert (embeddings.unweighted if weighted else embeddings.weighted) is None
    np.testing.assert_allclose(out.detach().numpy(), expected(embeddings), rtol=1e-6, atol=1e-7)


class Reordered(nn.Module):
    """Returns its features in another order, as a sharded collection does by its plan."""

    def __init__(self, collection: nn.Module, order: list[str]) -> None:
        super().__init__()
        self.collection, self.order = collection, order

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        result = self.collection(ids)
        return KeyedTensor.from_tensor_list(self.order, [result[name] for name in self.order])


@pytest.mark.parametrize("order", [["tags", "city", "topics"], ["topics", "tags", "city"]])
def test_features_come_by_name_whatever_order_the_collection_returns(order) -> None:
    embeddings = FeatureEmbeddings(TABLES)
    ids, weighted_ids = jagged("city", "topics", "tags"), jagged("watched", "liked")
    before = embeddings(ids, weighted_ids)
    embeddings.unweighted = Reordered(embeddings.unweighted, order)
    embeddings.weighted = Reordered(embeddings.weighted, ["liked", "watched"])
    assert torch.equal(embeddings(ids, weighted_ids), before)

    only = FeatureEmbeddings([table for table in TABLES if not table.weighted])
    before = only(ids, None)
    only.unweighted = Reordered(only.unweighted, order)
    assert torch.equal(only(ids, None), before)


def test_gradients_reach_the_rows_that_were_read_and_no_others() -> None:
    embeddings = FeatureEmbeddings(TABLES)
    embeddings(jagged("city", "topics", "tags"), jagged("watched", "liked")).sum().backward()
    grads = {n.split(".")[-2]: p.grad[:, 0].tolist() for n, p in embeddings.named_parameters()}
    assert grads["t_city"] == [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert grads["t_tags"] == [0, 2, 1, 0, 1, 0]
    assert grads["t_topics"] == [0, 0, 0, 0, 0, 0.5, 0.5, 1]
    assert grads["t_watched"] == [0.5, 0, -2, 0, 3]
    assert grads["t_liked"] == [0, 1.25, 0, 0]


def test_rows_start_uniform_at_a_scale_set_by_the_width_alone() -> None:
    tables = [FeatureTable("small", "a", 50, 16), FeatureTable("large", "b", 5000, 16)]
    for parameter in FeatureEmbeddings(tables).parameters():
        assert parameter.abs().max() <= 1 / 4
        assert parameter.std().item() == pytest.approx(1 / 4 / math.sqrt(3), rel=0.05)
        assert len(parameter.unique(dim=0)) == len(parameter)


def test_tables_on_the_meta_device_carry_the_same_initialisation() -> None:
    embeddings = FeatureEmbeddings(TABLES, device="meta")
    assert all(parameter.is_meta for parameter in embeddings.parameters())
    for config in embeddings.unweighted.embedding_bag_configs():
        weight = config.init_fn(torch.empty(2000, config.embedding_dim))
        bound = 1 / math.sqrt(config.embedding_dim)
        assert 0.99 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "`tables` is empty"),
        ([FeatureTable("t", "a", 3, 4), FeatureTable("t", "b", 3, 4)], "table name 't' is used tw"),
        ([FeatureTable("t", "a", 3, 4), FeatureTable("u", "a", 3, 4)], "feature 'a' is used twice"),
        ([FeatureTable("t", "a", 0, 4)], r"table 't': rows \(0\)"),
        ([FeatureTable("t", "a", 3, 4, pooling="max")], "table 't': pooling 'max' is unknown"),
        ([FeatureTable("t", "a", 3, 4, "mean", weighted=True)], "table 't': weighted ids are"),
    ],
)
def test_impossible_tables_are_refused_by_name(tables, message) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureEmbeddings(tables)


def test_missing_ids_are_refused() -> None:
    embeddings = FeatureEmbeddings(TABLES)
    with pytest.raises(ValueError, match="`weighted_ids` is None"):
        embeddings(jagged("city", "topics", "tags"), None)
    with pytest.raises(ValueError, match="`ids` is None"):
        embeddings(None, jagged("watched", "liked"))


def test_torchrec_may_be_imported_late_under_another_default_device() -> None:
    code = (
        "import torch, ple\n"
        "with torch.device('meta'):\n"
        "    tables = [ple.FeatureTable('a', 'a', 5, 4)]\n"
        "    print(ple.FeatureEmbeddings(tables, device=torch.device('meta')).width)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr
