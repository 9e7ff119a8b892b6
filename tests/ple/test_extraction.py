import numpy as np
import ple_reference as reference
import pytest
import torch
from torch.func import functional_call

from ple import ExpertOptions, Extraction, LevelSpec, wire
from ple.kinds import shared_gates

IN_WIDTH = 7

# name: levels, activation, normalization
STACKS = {
    "cgc": ([LevelSpec(2, (2, 2), (6, 4))], "relu", "none"),
    "two_levels": ([LevelSpec(2, (2, 2), (6, 5)), LevelSpec(2, (2, 2), (4,))], "relu", "none"),
    "three_levels_unequal": (
        [
            LevelSpec(1, (2, 3, 1), (6,)),
            LevelSpec(2, (1, 1, 4), (5, 4)),
            LevelSpec(3, (2, 1, 1), (3,)),
        ],
        "silu",
        "none",
    ),
    "one_task": ([LevelSpec(1, (2,), (6,)), LevelSpec(2, (1,), (4,))], "relu", "none"),
    "one_expert_alone": ([LevelSpec(0, (1,), (6,)), LevelSpec(0, (1,), (4,))], "relu", "none"),
    "no_shared": ([LevelSpec(0, (2, 3), (6,)), LevelSpec(0, (2, 1), (4,))], "relu", "none"),
    "no_shared_first": ([LevelSpec(0, (2, 3), (6,)), LevelSpec(2, (2, 1), (4,))], "relu", "none"),
    "no_shared_middle": (
        [LevelSpec(1, (1, 1), (6,)), LevelSpec(0, (2, 1), (5,)), LevelSpec(1, (1, 1), (4,))],
        "relu",
        "none",
    ),
    "no_shared_last": ([LevelSpec(2, (2, 3), (6,)), LevelSpec(0, (2, 1), (4,))], "relu", "none"),
    "no_task_experts": ([LevelSpec(3, (0, 0), (6,)), LevelSpec(2, (0, 0), (4,))], "relu", "none"),
    "some_without_own": ([LevelSpec(1, (0, 2), (6,)), LevelSpec(2, (0, 1), (4,))], "relu", "none"),
    "layer_norm": ([LevelSpec(2, (1, 2), (6, 5)), LevelSpec(1, (2, 1), (4,))], "silu", "layer"),
    "gate_options": (
        [
            LevelSpec(2, (1, 2), (6,), gate_hidden=(5, 3), gate_bias=True),
            LevelSpec(1, (2, 1), (4,), gate_bias=True),
        ],
        "gelu",
        "none",
    ),
    "shared_hidden": (
        [LevelSpec(2, (1, 2), (6,), (8, 6)), LevelSpec(1, (2, 1), (5, 4), (4,))],
        "relu",
        "none",
    ),
    "eleven_tasks": ([LevelSpec(1, (1, 2) * 5 + (1,), (4,)) for _ in range(2)], "relu", "none"),
}


def ple_of(
    levels: list[LevelSpec],
    activation: str = "relu",
    normalization: str = "none",
    dropout: float = 0.0,
    width: int = IN_WIDTH,
) -> Extraction:
    options = ExpertOptions(activation, normalization, dropout)
    return Extraction(wire("ple", levels), width, options)


def build(name: str, dtype: torch.dtype = torch.float64) -> Extraction:
    levels, activation, normalization = STACKS[name]
    model = ple_of(levels, activation, normalization).to(dtype)
    with torch.no_grad():  # biases start at zero and scales at one: move them, so that they count
        for parameter in model.parameters():
            if parameter.ndim < 3:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def counts_of(name: str) -> list[tuple[int, tuple[int, ...]]]:
    return [(level.shared_experts, level.task_experts) for level in STACKS[name][0]]


@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("name", STACKS)
def test_streams_and_gates_equal_the_reference(name: str, rows: int, looped: bool) -> None:
    model = build(name)
    x = torch.randn(rows, IN_WIDTH, dtype=torch.float64)
    streams, gates = model([x], looped)
    expected_streams, expected_gates = reference.extraction(
        reference.parameters_of(model), x.numpy(), counts_of(name), STACKS[name][1]
    )
    assert len(streams) == len(expected_streams)
    for stream, expected in zip(streams, expected_streams, strict=True):
        np.testing.assert_allclose(stream.detach().numpy(), expected, rtol=1e-11, atol=1e-12)
    assert [len(level) for level in gates] == [len(level) for level in expected_gates]
    for level, expected_level in zip(gates, expected_gates, strict=True):
        for gate, expected in zip(level, expected_level, strict=True):
            np.testing.assert_allclose(gate.detach().numpy(), expected, rtol=1e-11, atol=1e-12)

    model.float()
    for stream, expected in zip(model([x.float()], looped)[0], expected_streams, strict=True):
        np.testing.assert_allclose(stream.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_random_stacks_equal_the_reference_and_have_no_dead_parameter(seed: int) -> None:
    draw = np.random.default_rng(seed)
    tasks = int(draw.integers(1, 5))
    levels = []
    for _ in range(draw.integers(1, 4)):
        shared = int(draw.choice([0, 2, 3]))
        own = draw.integers(0 if shared else 1, 4, size=tasks)
        hidden = tuple(draw.integers(2, 6, size=draw.integers(1, 3)).tolist())
        levels.append(LevelSpec(shared, tuple(own.tolist()), hidden))
    model = ple_of(levels, "silu").double()
    x = torch.randn(32, IN_WIDTH, dtype=torch.float64)
    streams, _ = model([x])
    counts = [(level.shared_experts, level.task_experts) for level in levels]
    expected, _ = reference.extraction(reference.parameters_of(model), x.numpy(), counts, "silu")
    np.testing.assert_allclose(torch.stack(streams).detach().numpy(), np.stack(expected), 1e-10)

    sum((stream * torch.randn_like(stream)).sum() for stream in streams).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", STACKS)
def test_looped_and_batched_forms_agree_with_the_same_state(name: str) -> None:
    looped, batched = build(name, torch.float32), build(name, torch.float32)
    batched.load_state_dict(looped.state_dict())
    x_looped = torch.randn(33, IN_WIDTH, requires_grad=True)
    x_batched = x_looped.detach().clone().requires_grad_()
    out_looped = torch.stack(looped([x_looped], True)[0])
    out_batched = torch.stack(batched([x_batched], False)[0])
    torch.testing.assert_close(out_looped, out_batched, rtol=1e-6, atol=1e-6)

    seed = torch.randn_like(out_looped)
    out_looped.backward(seed)
    out_batched.backward(seed)
    torch.testing.assert_close(x_looped.grad, x_batched.grad, rtol=1e-4, atol=1e-5)
    for left, right in zip(looped.parameters(), batched.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize(
    "name",
    ["two_levels", "three_levels_unequal", "one_task", "no_shared_middle", "some_without_own",
     "layer_norm", "gate_options"],
)  # fmt: skip
def test_gradcheck(name: str, looped: bool) -> None:
    model = build(name)
    names = [n for n, _ in model.named_parameters()]
    x = torch.randn(3, IN_WIDTH, dtype=torch.float64, requires_grad=True)

    def streams(x: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            functional_call(model, dict(zip(names, values, strict=True)), ([x], looped))[0]
        )

    assert torch.autograd.gradcheck(streams, (x, *model.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", STACKS)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    levels, _, normalization = STACKS[name]
    model = ple_of(levels, "silu", normalization).double()
    streams, _ = model([torch.randn(32, IN_WIDTH, dtype=torch.float64)])
    sum((stream * torch.randn_like(stream)).sum() for stream in streams).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_a_loss_on_one_task_leaves_other_tasks_experts_of_the_last_level_alone() -> None:
    model = build("two_levels")
    x = torch.randn(8, IN_WIDTH, dtype=torch.float64, requires_grad=True)
    for looped in (True, False):
        streams, _ = model([x], looped)
        names, parameters = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(streams[0].sum(), parameters, allow_unused=True)
        touched = {n for n, g in zip(names, grads, strict=True) if g is not None and g.any()}
        assert not any(n.startswith("levels.1.experts.task_1.") for n in touched)
        assert any(n.startswith("levels.1.experts.task_0.") for n in touched)
        # Through the shared stream task 0 reads task 1's experts of level 1.
        assert any(n.startswith("levels.0.experts.task_1.") for n in touched)


def test_gates_of_level_two_read_the_streams_and_not_the_input() -> None:
    model = build("two_levels")
    x = torch.randn(4, IN_WIDTH, dtype=torch.float64)
    with torch.no_grad():
        for bank in model.levels[0].experts.values():
            for parameter in bank.parameters():
                parameter.zero_()
    gates = model([x])[1]
    # All streams of level 1 are zero now, so a gate that varies by row reads something else.
    assert all(torch.equal(gate, gate[:1].expand_as(gate)) for gate in gates[1])
    assert not torch.equal(gates[0][0], gates[0][0][:1].expand_as(gates[0][0]))


def test_gate_columns_cover_own_then_shared_and_all_tasks_then_shared() -> None:
    model = build("three_levels_unequal")
    gates = model([torch.randn(5, IN_WIDTH, dtype=torch.float64)])[1]
    assert [[gate.shape[1] for gate in level] for level in gates] == [
        [2 + 1, 3 + 1, 1 + 1, 2 + 3 + 1 + 1],
        [1 + 2, 1 + 2, 4 + 2, 1 + 1 + 4 + 2],
        [2 + 3, 1 + 3, 1 + 3],
    ]
    assert "shared" not in model.levels[2].gates
    for level in gates:
        for gate in level:
            torch.testing.assert_close(gate.sum(1), torch.ones(5, dtype=torch.float64))


def test_permuting_the_tasks_permutes_the_outputs() -> None:
    counts, order = (2, 1, 3), (2, 0, 1)
    shuffled = tuple(counts[task] for task in order)
    model = ple_of([LevelSpec(2, counts, (5,)), LevelSpec(1, counts, (4,))])
    other = ple_of([LevelSpec(2, shuffled, (5,)), LevelSpec(1, shuffled, (4,))])
    state = {}
    for name, value in other.state_dict().items():
        parts = name.split(".")
        if parts[3].startswith("task_"):
            parts[3] = f"task_{order[int(parts[3].removeprefix('task_'))]}"
        value = model.state_dict()[".".join(parts)]
        if parts[2:4] == [
            "gates",
            "shared",
        ]:  # its rows are task 0's experts, task 1's, …, the shared ones
            blocks = value.split([*counts, 2])
            value = torch.cat([*(blocks[task] for task in order), blocks[3]])
        state[name] = value
    other.load_state_dict(state)
    x = torch.randn(6, 7)
    streams, permuted = model([x])[0], other([x])[0]
    for position, task in enumerate(order):
        torch.testing.assert_close(permuted[position], streams[task], rtol=1e-6, atol=1e-6)


def test_experts_and_banks_differ_at_the_start() -> None:
    model = ple_of([LevelSpec(2, (2, 2), (8, 8)), LevelSpec(2, (2, 2), (8, 8))], width=8)
    weights = [p for n, p in model.named_parameters() if "experts" in n and "weights" in n]
    matrices = [matrix for weight in weights for matrix in weight.unbind()]
    assert len(matrices) == 2 * 6 * 2
    for i, left in enumerate(matrices):
        for right in matrices[:i]:
            assert (left - right).abs().mean() > 0.1 * left.abs().mean()


def test_dropout_acts_in_training_only_and_on_each_expert_on_its_own() -> None:
    spec = LevelSpec(4, (0,), (512,))
    model = ple_of([spec], dropout=0.5)
    x = torch.ones(1, IN_WIDTH)
    bank = model.levels[0].experts["shared"]
    for form in (bank.looped, lambda x: bank.batched(x).unbind(1)):
        model.eval()
        plain = torch.stack(list(form(x)))
        torch.testing.assert_close(torch.stack(list(form(x))), plain)
        model.train()
        dropped = torch.stack(list(form(x)))
        alive = plain > 0
        kept = dropped[alive] > 0
        torch.testing.assert_close(dropped[alive][kept], 2 * plain[alive][kept])
        assert 0.4 < kept.float().mean() < 0.6
        both = alive[0] & alive[1]
        assert not torch.equal(dropped[0][both] > 0, dropped[1][both] > 0)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([LevelSpec(2, (1,), (4,))], [False]),
        ([LevelSpec(0, (1, 1), (4,)), LevelSpec(1, (1, 1), (4,))], [True, False]),
        ([LevelSpec(2, (1, 1), (4,)), LevelSpec(0, (1, 1), (4,))], [False, False]),
        # Level 2 has no shared experts, but its shared gate selects by the shared stream.
        ([LevelSpec(0, (1, 1), (4,))] * 2 + [LevelSpec(1, (1, 1), (4,))], [True, True, False]),
        # One expert leaves nothing to select.
        ([LevelSpec(0, (1,), (4,))] * 2 + [LevelSpec(1, (1,), (4,))], [False, True, False]),
    ],
)
def test_shared_gates_exist_only_where_they_are_read(levels, expected) -> None:
    assert shared_gates(levels) == expected


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "`levels` is empty"),
        ([LevelSpec(1, (), (4,))], "level 1: `task_experts` is empty"),
        ([LevelSpec(1, (1, 1), (4,)), LevelSpec(1, (1,), (4,))], "level 2: .* 1 counts.* has 2"),
        ([LevelSpec(-1, (1,), (4,))], "level 1: an expert count is negative"),
        ([LevelSpec(1, (1,), ())], "level 1: `hidden` needs"),
        ([LevelSpec(1, (1,), (4, 0))], "level 1: `hidden` needs"),
        ([LevelSpec(1, (1,), (4,), (8, 5))], "level 1: `shared_hidden` must end in width 4"),
        ([LevelSpec(0, (2, 0), (4,))], "level 1: task 1 has no experts"),
        ([LevelSpec(1, (1,), (4,)), LevelSpec(1, (0,), (4,))], "level 2: task 0 .* read by noth"),
    ],
)
def test_impossible_levels_are_refused_with_place_and_remedy(levels, message) -> None:
    with pytest.raises(ValueError, match=message):
        ple_of(levels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "activation 'tanh' is unknown; choose one of relu"),
        ({"normalization": "group"}, "normalization 'group' is unknown"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_unknown_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ple_of([LevelSpec(1, (1,), (4,))], **options)
