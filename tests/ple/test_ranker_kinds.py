"""Whole rankers of every kind: tables, crosses, gates' names, penalty, objective."""

import pytest
import torch
from torchrec import KeyedJaggedTensor

from ple import CrossSpec, FeatureEmbeddings, FeatureTable, LevelSpec, Ranker

TASKS = 3
NONE = (0,) * TASKS
LEVELS = {
    "single_task": [LevelSpec(0, NONE, (8, 6))],
    "shared_bottom": [LevelSpec(0, NONE, (8, 6))],
    "moe": [LevelSpec(3, NONE, (8,)), LevelSpec(2, NONE, (6,))],
    "mmoe": [LevelSpec(3, NONE, (8,)), LevelSpec(2, NONE, (6,))],
    "cgc": [LevelSpec(2, (1, 2, 1), (6,))],
    "ple": [LevelSpec(2, (1, 2, 1), (8,)), LevelSpec(1, (1, 1, 2), (6,))],
    "adatt": [LevelSpec(2, (1, 2, 1), (8,)), LevelSpec(1, (1, 1, 2), (6,))],
    "home": [
        LevelSpec(2, NONE, (8,), group_experts=(1, 2)),
        LevelSpec(1, (1, 1, 2), (6,), group_experts=(2, 1)),
    ],
    "stem": [LevelSpec(2, (1, 2, 1), (8,)), LevelSpec(1, (1, 1, 2), (6,))],
}
TOWERS = [(5,), (), (4,)]


def tables(kind: str) -> list[FeatureTable]:
    plain = [("user", 20, 6, False), ("history", 12, 5, True), ("item", 9, 4, False)]
    if kind == "single_task":
        return [
            FeatureTable(f"{name}@{task}", name, rows, dim, weighted=weighted, view=task)
            for task in range(TASKS)
            for name, rows, dim, weighted in plain
        ]
    slices = TASKS + 1 if kind == "stem" else 1
    return [
        FeatureTable(name, name, rows, dim, weighted=weighted, slices=slices)
        for name, rows, dim, weighted in plain
    ]


def build(kind: str, **options) -> Ranker:
    if kind == "home":
        options["groups"] = ((0, 2), (1,))
    return Ranker(FeatureEmbeddings(tables(kind)), 3, LEVELS[kind], TOWERS, kind=kind, **options)


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


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("kind", LEVELS)
def test_every_parameter_tables_included_receives_a_gradient(kind, rows) -> None:
    model = build(kind, activation="silu", cross=CrossSpec(2, 4), gate_l2=0.0)
    outputs = model(*batch(rows))
    assert outputs.shape == (rows, TASKS)
    (outputs * torch.randn(rows, TASKS)).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("kind", LEVELS)
def test_spare_columns_of_every_kind_stay_zero_and_move_nothing(kind) -> None:
    fusion = "concatenation" if kind in ("ple", "stem") else "weighted_sum"
    model = build(kind, cross=CrossSpec(1, 2), fusion=fusion)
    signal = 6 + 5 + 4 + 3
    inputs = batch(16)
    for x in model.features(*inputs):
        assert x.shape == (16, 32)
        assert not x[:, signal:].any()
    (model(*inputs) * torch.randn(16, TASKS)).sum().backward()
    seen = 0
    for name, parameter in model.named_parameters():
        if name.startswith("embeddings"):
            continue
        for axis, width in enumerate(parameter.shape):
            if width in (32, 32 + 8):  # a feature vector, or one behind a level's output
                start = signal + width - 32
                assert not parameter.narrow(axis, start, width - start).any(), name
                assert not parameter.grad.narrow(axis, start, width - start).any(), name
                seen += 1
    assert seen >= 2


def test_single_task_equals_separate_models() -> None:
    model = build("single_task", cross=CrossSpec(2, 4))
    inputs = batch(8)
    together = model(*inputs)
    seed = torch.randn(8, TASKS)
    (together * seed).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    plain = [FeatureTable(t.feature, t.feature, t.rows, t.dim, t.pooling, t.weighted)
             for t in tables("single_task")[:3]]  # fmt: skip
    for task in range(TASKS):
        alone = Ranker(
            FeatureEmbeddings(plain), 3, [LevelSpec(0, (0,), (8, 6))], [TOWERS[task]],
            kind="single_task", cross=CrossSpec(2, 4),
        )  # fmt: skip
        names = {
            name: f"{name.removesuffix('.weight')}@{task}.weight"
            if name.startswith("embeddings")
            else name.replace("task_0", f"task_{task}")
            .replace("towers.towers.0", f"towers.towers.{task}")
            .replace("crosses.0", f"crosses.{task}")
            for name in alone.state_dict()
        }
        alone.load_state_dict({name: model.state_dict()[theirs] for name, theirs in names.items()})
        found = alone(*inputs)
        torch.testing.assert_close(found[:, 0], together[:, task])
        (found[:, 0] * seed[:, task]).sum().backward()
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[names[name]])


def test_single_task_shares_nothing() -> None:
    model = build("single_task", cross=CrossSpec(1, 2))
    names, parameters = zip(*model.named_parameters(), strict=True)
    moved = []
    for task in range(TASKS):
        grads = torch.autograd.grad(model(*batch(16))[:, task].sum(), parameters, allow_unused=True)
        moved.append({n for n, g in zip(names, grads, strict=True) if g is not None and g.any()})
    assert sum(map(len, moved)) == len(names)
    assert set.union(*moved) == set(names)


def test_stem_gives_each_task_its_slice_and_experts_the_shared_one() -> None:
    model = build("stem")
    ids, history, dense = batch(4)
    views = model.features(ids, history, dense)
    user = model.embeddings.unweighted.embedding_bags["user"].weight
    item = model.embeddings.unweighted.embedding_bags["item"].weight
    rows = ids["user"].values(), ids["item"].values()
    for view in range(TASKS + 1):
        torch.testing.assert_close(views[view][:, :6], user[rows[0], 6 * view : 6 * view + 6])
        torch.testing.assert_close(views[view][:, 11:15], item[rows[1], 4 * view : 4 * view + 4])
        torch.testing.assert_close(views[view][:, 15:18], dense)
    assert user.abs().max() <= 6**-0.5  # the scale of a table of width 6, not of 24


@pytest.mark.parametrize("kind", LEVELS)
def test_names_fit_the_gates(kind) -> None:
    groups = {"group_names": ("watch", "act")} if kind == "home" else {}
    model = build(kind, task_names=("click", "like", "buy"), **groups)
    _, gates = model(*batch(4), return_gates=True)
    names = model.gate_names()
    assert [[len(experts) for _, experts in level] for level in names] == [
        [gate_BE.shape[1] for gate_BE in level] for level in gates
    ]
    assert all(not gate_BE.requires_grad for level in gates for gate_BE in level)
    shown = {
        "moe": [[("shared", ("shared 1", "shared 2", "shared 3"))],
                [("shared", ("shared 1", "shared 2"))]],
        "mmoe": [[(f"for expert {e}", ("shared 1", "shared 2", "shared 3")) for e in (1, 2)],
                 [(task, ("shared 1", "shared 2")) for task in ("click", "like", "buy")]],
        "cgc": [[("click", ("click 1", "shared 1", "shared 2")),
                 ("like", ("like 1", "like 2", "shared 1", "shared 2")),
                 ("buy", ("buy 1", "shared 1", "shared 2"))]],
    }  # fmt: skip
    if kind in shown:
        assert names == shown[kind]
    if kind in ("single_task", "shared_bottom"):
        assert names == gates == []
    if kind == "home":
        assert names[0][2] == ("shared", ("watch 1", "act 1", "act 2", "shared 1", "shared 2"))
        assert names[1][1] == ("like", ("like 1", "act 1", "shared 1"))
    if kind == "stem":
        assert names[1][0] == ("click", ("click 1", "like 1", "buy 1", "buy 2", "shared 1"))


def test_the_penalty_is_the_squared_norm_of_the_gates() -> None:
    levels = [
        LevelSpec(2, (1, 2), (8,), gate_hidden=(5,), gate_bias=True),
        LevelSpec(1, (1, 1), (6,)),
    ]
    model = Ranker(None, 3, levels, [(), ()], gate_l2=0.25)
    expected = sum(
        p.square().sum()
        for name, p in model.named_parameters()
        if ".gates." in name and name.endswith("weight")
    )
    torch.testing.assert_close(model.penalty(), 0.25 * expected)
    model.penalty().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved
    assert all(".gates." in name and name.endswith("weight") for name in moved)
    assert Ranker(None, 3, levels, [(), ()]).penalty().item() == 0.0
    with pytest.raises(ValueError, match=r"`gate_l2` has no effect.*'single_task'"):
        build("single_task", gate_l2=0.1)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_objective_sees_a_boundary_with_gradients(kind) -> None:
    model = build(kind)
    inputs = batch(8)
    expected = model(*inputs)

    def objective(outputs, boundary):
        torch.testing.assert_close(outputs, expected)
        assert set(boundary) == {"features", "last_level", "outputs"}
        assert torch.equal(torch.cat(boundary["outputs"], dim=1), outputs)
        views = TASKS + 1 if kind == "stem" else TASKS if kind == "single_task" else 1
        assert len(boundary["features"]) == views
        for streams in boundary.values():
            assert len({id(stream) for stream in streams}) == len(streams)
            for grad in torch.autograd.grad(outputs.sum(), streams, retain_graph=True):
                assert grad.any()
        return outputs.mean(), len(boundary["last_level"])

    loss, count = model(*inputs, objective=objective)
    torch.testing.assert_close(loss, expected.mean())
    assert count == {"single_task": 3, "mmoe": 3, "ple": 4, "adatt": 4, "home": 3, "stem": 4}.get(
        kind, 1
    )


def test_the_objective_has_a_boundary_without_tables_too() -> None:
    model = Ranker(None, 3, [LevelSpec(1, (1,), (4,))], [()])

    def objective(outputs, boundary):
        return torch.autograd.grad(outputs.sum(), boundary["features"])[0]

    grad = model(None, None, torch.randn(5, 3), objective=objective)
    assert grad.shape == (5, 16)
    assert grad[:, :3].any()


def test_batch_statistics_leave_padded_rows_out() -> None:
    model = build("ple", normalization="batch")
    assert model.batch_statistics
    ids, history, dense = batch(6)
    real = torch.tensor([True, True, True, True, False, False])
    other = dense.clone()
    other[4:] = 1e3
    first = model(ids, history, dense, real_B=real)
    torch.testing.assert_close(model(ids, history, other, real_B=real)[:4], first[:4])
    assert not torch.allclose(model(ids, history, other)[:4], first[:4])


@pytest.mark.parametrize(
    ("made_for", "kind", "message"),
    [
        ("ple", "single_task", "reads 3 feature vectors, the tables give 1"),
        ("stem", "ple", "reads 1 feature vectors, the tables give 4"),
    ],
)
def test_tables_of_another_kind_are_refused(made_for, kind, message) -> None:
    with pytest.raises(ValueError, match=message):
        Ranker(FeatureEmbeddings(tables(made_for)), 3, LEVELS[kind], TOWERS, kind=kind)


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 names for 3 tasks"):
        build("ple", task_names=("click", "like"))
