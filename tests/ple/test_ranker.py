import ast
import sys
from pathlib import Path

import numpy as np
import ple_reference as reference
import pytest
import torch
from torchrec import KeyedJaggedTensor

import ple
from ple import FeatureEmbeddings, FeatureTable, Head, Heads, LevelSpec, Ranker, losses

TABLES = [
    FeatureTable("user", "user", 20, 6),
    FeatureTable("history", "history", 12, 5, weighted=True),
    FeatureTable("item", "item", 9, 4),
]
LEVELS = [LevelSpec(2, (2, 1), (12, 8)), LevelSpec(1, (1, 2), (6,))]
COUNTS = [(level.shared_experts, level.task_experts) for level in LEVELS]


def build(**options) -> Ranker:
    return Ranker(FeatureEmbeddings(TABLES), 3, LEVELS, [(5,), ()], **options)


def batch(rows: int) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor, torch.Tensor]:
    one = torch.ones(2 * rows, dtype=torch.int64)
    ids = KeyedJaggedTensor(
        ["user", "item"],
        torch.cat([torch.randint(0, 20, (rows,)), torch.randint(0, 9, (rows,))]),
        lengths=one,
    )
    history = KeyedJaggedTensor(
        ["history"], torch.randint(0, 12, (2 * rows,)), torch.rand(2 * rows), one[:rows] * 2
    )
    return ids, history, torch.randn(rows, 3)


def reference_logits(model: Ranker, ids, history, dense) -> tuple[np.ndarray, list]:
    p = reference.parameters_of(model)
    table = {name.split(".")[-2]: value for name, value in p.items() if "embedding_bags" in name}
    weights = history.weights().double().numpy()
    rows = history.values().numpy()
    pooled = np.stack([
        sum(weights[2 * b + i] * table["history"][rows[2 * b + i]] for i in range(2))
        for b in range(len(dense))
    ])  # fmt: skip
    columns = [
        table["user"][ids["user"].values().numpy()],
        pooled,
        table["item"][ids["item"].values().numpy()],
        dense.double().numpy(),
    ]
    x = np.concatenate(columns, axis=1)
    x = np.concatenate([x, np.zeros((len(x), 32 - x.shape[1]))], axis=1)

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): v for n, v in p.items() if n.startswith(prefix)}

    streams, gates = reference.extraction(part("extraction."), x, COUNTS, "relu")
    return reference.towers(part("towers."), streams, "relu"), gates


@pytest.mark.parametrize("rows", [1, 8])
def test_logits_and_gates_equal_the_reference(rows) -> None:
    model = build()
    inputs = batch(rows)
    logits, gates = model(*inputs, return_gates=True)
    expected, expected_gates = reference_logits(model, *inputs)
    assert logits.shape == (rows, 2)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    for level, expected_level in zip(gates, expected_gates, strict=True):
        for gate, expected_gate in zip(level, expected_level, strict=True):
            assert not gate.requires_grad
            np.testing.assert_allclose(gate.numpy(), expected_gate, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(*inputs), logits)


def test_every_parameter_receives_a_gradient() -> None:
    model = build(activation="silu", normalization="layer")
    logits = model(*batch(64))
    heads = Heads([Head(), Head(losses.SquaredError())])
    heads.losses(logits, torch.rand(64, 2), torch.ones(64, 2)).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_spare_columns_are_zero_inert_and_stay_so() -> None:
    model = build()
    inputs = batch(16)
    (x,) = model.features(*inputs)
    signal = 6 + 5 + 4 + 3
    assert x.shape == (16, 32)
    assert not x[:, signal:].any()
    torch.testing.assert_close(x[:, signal - 3 : signal], inputs[2])
    logits = model(*inputs)
    logits.sum().backward()
    first = {n: p for n, p in model.named_parameters() if p.shape[-1] == 32}
    assert len(first) == 3 + 3  # banks and gates of level 1
    for parameter in first.values():
        assert not parameter[..., signal:].any()
        assert not parameter.grad[..., signal:].any()
        assert parameter.grad[..., :signal].any()
    with torch.no_grad():
        for parameter in first.values():
            parameter[..., signal:] = 1e6
    assert torch.equal(model(*inputs), logits)


def test_no_spare_columns_where_the_width_already_fits() -> None:
    model = Ranker(None, 64, LEVELS, [(), ()])
    dense = torch.randn(3, 64)
    assert torch.equal(model.features(None, None, dense)[0], dense)


def test_a_model_of_embeddings_only_and_one_of_dense_columns_only() -> None:
    ids, history, dense = batch(4)
    sparse = Ranker(FeatureEmbeddings(TABLES), 0, LEVELS, [(), ()])
    assert sparse(ids, history, dense[:, :0]).shape == (4, 2)
    one_task = Ranker(None, 3, [LevelSpec(1, (1,), (4,))], [(3,)])
    assert one_task(None, None, dense).shape == (4, 1)


def test_dropout_acts_in_training_only() -> None:
    inputs = batch(8)
    for name in ("input_dropout", "expert_dropout", "tower_dropout"):
        model = build(**{name: 0.5})
        assert not torch.equal(model(*inputs), model(*inputs)), name
        model.eval()
        assert torch.equal(model(*inputs), model(*inputs)), name


def test_the_same_seed_gives_the_same_model() -> None:
    torch.manual_seed(3)
    left = build().state_dict()
    torch.manual_seed(3)
    right = build().state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 0, LEVELS, [(), ()]), "no features"),
        ((None, 3, LEVELS, [()]), "1 towers for 2 tasks"),
        ((None, 3, LEVELS, [(), ()], "relu", "none", 1.5), "input_dropout must be"),
        ((None, 3, LEVELS, [(), (0,)]), "widths of at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Ranker(*arguments)


def test_a_batch_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="the batch has 2 dense columns, the model 3"):
        Ranker(None, 3, LEVELS, [(), ()])(None, None, torch.zeros(4, 2))


def test_the_package_imports_torch_torchrec_and_the_standard_library_only() -> None:
    allowed = {"torch", "torchrec", "ple", *sys.stdlib_module_names}
    files = sorted(Path(ple.__file__).parent.rglob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, file
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= allowed, (file, names)
