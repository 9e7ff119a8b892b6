import pytest
import torch

from ple import CrossSpec, FeatureEmbeddings, FeatureTable, LevelSpec, Ranker, cost

TABLES = [FeatureTable("user", "user", 20, 6), FeatureTable("item", "item", 9, 4)]


def test_ple_counted_by_hand() -> None:
    levels = [LevelSpec(1, (2, 1), (8, 4)), LevelSpec(1, (1, 1), (3,), gate_bias=True)]
    found = cost(Ranker(FeatureEmbeddings(TABLES), 3, levels, [(5,), ()]))
    signal = 6 + 4 + 3
    experts_1 = 4 * (signal * 8 + 8 * 4)
    gates_1 = signal * (3 + 2 + 4)
    experts_2, gates_2 = 3 * (4 * 3), 4 * (2 + 2)
    towers = 3 * 5 + 5 * 1 + 3 * 1
    biases = 4 * (8 + 4) + 3 * 3 + (2 + 2) + 5 + 1 + 1
    weights = experts_1 + gates_1 + experts_2 + gates_2 + towers
    assert found.parameters == weights + biases
    assert found.flops_per_row == 2 * (weights + (3 + 2 + 4) * 4 + (2 + 2) * 3)
    assert found.table_parameters == 20 * 6 + 9 * 4


def test_crosses_norms_and_slices_counted_by_hand() -> None:
    tables = [FeatureTable("user", "user", 20, 6, slices=3)]
    model = Ranker(
        FeatureEmbeddings(tables),
        0,
        [LevelSpec(1, (1, 1), (4,))],
        [(), ()],
        normalization="layer",
        kind="stem",
        cross=CrossSpec(2, 3),
    )
    found = cost(model)
    crosses, experts, gates, towers = 3 * 2 * 2 * 6 * 3, 3 * 6 * 4, 2 * 6 * 3, 2 * 4
    assert found.parameters == crosses + 3 * 2 * 6 + experts + 3 * 3 * 4 + gates + towers + 2
    assert found.flops_per_row == 2 * (crosses + experts + gates + towers + 2 * 3 * 4)
    assert found.table_parameters == 20 * 6 * 3


def test_the_meta_device_gives_the_same_count() -> None:
    def build() -> Ranker:
        return Ranker(None, 70, [LevelSpec(2, (1, 2), (8,))], [(3,), (3,)], kind="adatt")

    with torch.device("meta"):
        shape_only = build()
    assert shape_only.towers.state_dict()
    assert all(p.is_meta for p in shape_only.parameters())
    assert cost(shape_only) == cost(build())


@pytest.mark.parametrize("width", [64, 65])
def test_spare_columns_do_not_count(width) -> None:
    found = cost(Ranker(None, width, [LevelSpec(0, (0,), (2,))], [()], kind="single_task"))
    assert found.parameters == 2 * width + 2 + 2 + 1
    assert found.flops_per_row == 2 * (2 * width + 2)
