"""Every kind but PLE (see test_extraction.py) against its reference, and what holds for all."""

import family_reference as family
import numpy as np
import ple_reference as reference
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from ple import KINDS, ExpertOptions, Extraction, LevelSpec, wire

WIDTH = 7
GROUPS = ((0, 2), (1,))


def level(shared: int, own: tuple[int, ...], *hidden: int, **more) -> LevelSpec:
    return LevelSpec(shared, own, hidden, **more)


NONE = (0, 0, 0)
GATE = {"gate_hidden": (4,), "gate_bias": True}
STACKS = {
    "single_task": [("single_task", [level(0, NONE, 6, 4)])],
    "shared_bottom": [("shared_bottom", [level(0, NONE, 6, 4)])],
    "moe": [
        ("moe", [level(3, NONE, 6, 4)]),
        ("moe", [level(3, NONE, 6, **GATE), level(1, NONE, 5), level(2, NONE, 4)]),
    ],
    "mmoe": [
        ("mmoe", [level(3, NONE, 6, 4)]),
        ("mmoe", [level(1, NONE, 4)]),
        ("mmoe", [level(3, NONE, 6, **GATE), level(2, NONE, 5), level(4, NONE, 3)]),
    ],
    "cgc": [("cgc", [level(2, (1, 2, 1), 6, 4)])],
    "ple": [("ple", [level(2, (1, 2, 1), 6), level(1, (1, 1, 2), 4)])],
    "adatt": [
        ("adatt", [level(2, (1, 2, 3), 6, 4)]),
        ("adatt", [level(0, (1, 1, 1), 6), level(0, (2, 1, 1), 4)]),
        ("adatt", [level(1, (1, 2, 1), 6, **GATE), level(2, (1, 1, 2), 4)]),
    ],
    "home": [
        ("home", [
            level(2, NONE, 6, group_experts=(1, 2)),
            level(1, (1, 2, 1), 5, group_experts=(2, 1)),
        ]),
        ("home", [
            level(1, NONE, 6, group_experts=(1, 1), **GATE),
            level(2, (2, 1, 1), 5, 4, group_experts=(1, 2)),
        ]),
    ],
    "stem": [
        ("stem", [level(2, (1, 2, 1), 6, 4)]),
        ("stem", [level(1, (1, 2, 1), 6, **GATE), level(2, (1, 1, 2), 4)]),
    ],
}  # fmt: skip
CASES = [
    pytest.param(kind, levels, id=f"{kind}-{number}")
    for stacks in STACKS.values()
    for number, (kind, levels) in enumerate(stacks)
]


def build(kind: str, levels, normalization="none", fusion="weighted_sum", feature_gate=(2, 3)):
    groups = GROUPS if kind == "home" else ()
    options = ExpertOptions("silu", normalization)
    model = Extraction(wire(kind, levels, groups), WIDTH, options, fusion, feature_gate).double()
    with torch.no_grad():  # biases start at zero and scales at one: move them, so that they count
        for parameter in model.parameters():
            if parameter.ndim < 3:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(model: Extraction, rows: int) -> list[Tensor]:
    return [torch.randn(rows, WIDTH, dtype=torch.float64) for _ in range(model.wiring.views)]


def weighted_sum(streams) -> Tensor:
    return sum((stream * torch.randn_like(stream)).sum() for stream in streams)


def test_the_table_of_cases_covers_every_kind() -> None:
    assert set(STACKS) == set(KINDS)


@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_streams_and_gates_equal_the_reference(kind, levels, rows, looped) -> None:
    model = build(kind, levels)
    xs = inputs(model, rows)
    p, numpy_xs = reference.parameters_of(model), [x.numpy() for x in xs]
    if kind in family.KINDS:
        expected, expected_gates = family.KINDS[kind](p, numpy_xs, levels, "silu")
    else:
        counts = [(spec.shared_experts, spec.task_experts) for spec in levels]
        expected, expected_gates = reference.extraction(p, numpy_xs[0], counts, "silu")
    streams, gates = model(xs, looped)
    for stream, other in zip(streams, expected, strict=True):
        np.testing.assert_allclose(stream.detach().numpy(), other, rtol=1e-10, atol=1e-12)
    assert [len(found) for found in gates] == [len(found) for found in expected_gates]
    for found, others in zip(gates, expected_gates, strict=True):
        for gate_BE, other in zip(found, others, strict=True):
            np.testing.assert_allclose(gate_BE.detach().numpy(), other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalization", ["none", "layer", "batch"])
@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_no_parameter_is_dead_and_both_forms_have_the_same_gradients(kind, levels, normalization):
    model = build(kind, levels, normalization)
    xs = [x.requires_grad_() for x in inputs(model, 32)]
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = []
    for looped in (True, False):
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(weighted_sum(model(xs, looped)[0]), [*xs, *parameters]))
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9)
    dead = [n for n, g in zip(names, grads[0][len(xs) :], strict=True) if g.abs().max() < 1e-12]
    assert dead == []


@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize("kind", ["mmoe", "adatt", "home"])
def test_gradcheck(kind, looped) -> None:
    model = build(kind, STACKS[kind][-1][1])
    names = [name for name, _ in model.named_parameters()]
    xs = [x.requires_grad_() for x in inputs(model, 3)]

    def streams(*values: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(names, values[len(xs) :], strict=True))
        return tuple(functional_call(model, state, (list(values[: len(xs)]), looped))[0])

    assert torch.autograd.gradcheck(streams, (*xs, *model.parameters()), fast_mode=True)


@pytest.mark.parametrize("looped", [True, False])
def test_stem_is_all_forward_and_task_specific_backward(looped) -> None:
    """One level: a task's loss moves its own and the shared experts, and no other's."""
    model = build(*STACKS["stem"][0])
    xs = [x.requires_grad_() for x in inputs(model, 8)]
    names, parameters = zip(*model.named_parameters(), strict=True)
    streams, _ = model(xs, looped)
    grads = torch.autograd.grad(streams[1].sum(), [*xs, *parameters], allow_unused=True)
    moved = [grad is not None and bool(grad.any()) for grad in grads]
    assert moved[:4] == [False, True, False, True]
    touched = {name.split(".")[3] for name, yes in zip(names, moved[4:], strict=True) if yes}
    assert touched == {"task_1", "shared"}
    with torch.no_grad():  # and yet the others' experts count in the forward pass
        model.levels[0].experts["task_0"].biases[-1].add_(1.0)
    assert not torch.allclose(model(xs, looped)[0][1], streams[1])


def test_stem_gradients_equal_those_of_experts_held_still() -> None:
    model = build(*STACKS["stem"][0])
    xs = inputs(model, 8)
    gate = model.levels[0].gates["task_0"]
    (found,) = torch.autograd.grad(model(xs)[0][0].square().sum(), gate.logits.out.weight)
    pool = [
        output.detach()
        for bank, x in zip(model.levels[0].experts.values(), xs, strict=True)
        for output in bank.looped(x)
    ]
    by_hand = sum(w * e for w, e in zip(gate(xs[0] + xs[3]).split(1, 1), pool, strict=True))
    (expected,) = torch.autograd.grad(by_hand.square().sum(), gate.logits.out.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_all_experts_and_gates_start_different(kind, levels) -> None:
    torch.manual_seed(0)
    groups = GROUPS if kind == "home" else ()
    model = Extraction(wire(kind, levels, groups), WIDTH)
    matrices = []
    for name, parameter in model.named_parameters():
        if "weight" in name and parameter.ndim >= 2:
            matrices += list(parameter.unbind()) if parameter.ndim == 3 else [parameter]
    for i, left in enumerate(matrices):
        for right in matrices[:i]:
            if left.shape == right.shape:
                assert (left - right).abs().mean() > 0.1 * left.abs().mean()


@pytest.mark.parametrize("kind", ["single_task", "mmoe", "adatt", "home", "stem"])
def test_permuting_the_tasks_permutes_the_streams(kind) -> None:
    order = (2, 0, 1)
    kind, levels = STACKS[kind][-1]
    own = [spec.task_experts for spec in levels]
    shuffled = [
        LevelSpec(**{**vars(spec), "task_experts": tuple(counts[k] for k in order)})
        for spec, counts in zip(levels, own, strict=True)
    ]
    groups = GROUPS if kind == "home" else ()
    moved = tuple(tuple(order.index(k) for k in members) for members in groups)
    model = build(kind, levels)
    other = Extraction(
        wire(kind, shuffled, moved), WIDTH, ExpertOptions("silu"), feature_gate=(2, 3)
    ).double()
    state = {}
    for name, value in other.state_dict().items():
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.startswith("task_"):
                parts[i] = f"task_{order[int(part.removeprefix('task_'))]}"
        value = model.state_dict()[".".join(parts)]
        if kind in ("adatt", "stem") and parts[-2] == "out":
            # Columns of a gate over all experts: task 0's, task 1's, …, the shared ones.
            spec = levels[int(parts[1])]
            *blocks, shared = value.split([*spec.task_experts, spec.shared_experts])
            value = torch.cat([*(blocks[k] for k in order), shared])
        state[name] = value
    other.load_state_dict(state)
    xs = inputs(model, 6)
    permuted_xs = [xs[k] for k in order] + xs[3:] if len(xs) > 1 else xs
    streams, permuted = model(xs)[0], other(permuted_xs)[0]
    for position, task in enumerate(order):
        torch.testing.assert_close(permuted[position], streams[task], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fusion", ["sum_with_previous", "product", "concatenation"])
@pytest.mark.parametrize("kind", ["moe", "ple", "adatt", "stem"])
def test_fusion_joins_the_gated_sum_with_the_stream_before_it(kind, fusion) -> None:
    kind, levels = STACKS[kind][-1]
    model = build(kind, levels[:2], fusion=fusion)
    xs = inputs(model, 16)
    streams = [xs[view] for view in model.wiring.inputs]
    outputs, _ = model.levels[0](streams)
    keys = [output.owner.key for output in model.wiring.levels[0].outputs]
    expected = []
    for key, output, x in zip(keys, outputs, streams, strict=True):
        if fusion == "concatenation":
            expected.append(np.concatenate([output.detach().numpy(), x.numpy()], axis=1))
            continue
        projected = x.numpy() @ model.fusions[0].projections[key].weight.detach().numpy().T
        output = output.detach().numpy()
        expected.append(output * projected if fusion == "product" else output + projected)
    entering: list[Tensor] = []
    weighted_sum(model(xs, entering=entering)[0]).backward()
    for found, other in zip(entering, expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), other, rtol=1e-12)
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_fusion_needs_no_matrix_where_the_widths_agree() -> None:
    model = build("moe", [level(2, NONE, WIDTH), level(2, NONE, 4)], fusion="sum_with_previous")
    assert list(model.fusions.parameters()) == []
    (x,) = inputs(model, 5)
    entering: list[Tensor] = []
    model([x], entering=entering)
    torch.testing.assert_close(entering[0], model.levels[0]([x])[0][0] + x)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_the_boundary_is_a_cut(kind, levels) -> None:
    """Directional derivatives through the boundary add up to the whole change of the streams."""
    model = build(kind, levels)
    xs = [x.requires_grad_() for x in inputs(model, 6)]
    entering: list[Tensor] = []
    streams, _ = model(xs, entering=entering)
    total = weighted_sum(streams)
    whole = torch.autograd.grad(total, xs, retain_graph=True)
    parts = torch.autograd.grad(total, entering, retain_graph=True)
    through = torch.autograd.grad(entering, xs, parts, allow_unused=True)
    for expected, found in zip(whole, through, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "levels", "message"),
    [
        ("plee", [level(1, (1,), 4)], "kind 'plee' is unknown; choose one of single_task"),
        ("single_task", [level(1, NONE, 4)], "'single_task' has no expert counts"),
        ("shared_bottom", [level(0, NONE, 4)] * 2, "'shared_bottom' has one level, not 2"),
        ("shared_bottom", [level(0, NONE, 4, gate_bias=True)], "'shared_bottom' has no gates"),
        ("mmoe", [level(2, (1, 0), 4)], "level 1: kind 'mmoe' has shared experts only"),
        ("moe", [level(0, NONE, 4)], "level 1: kind 'moe' has shared experts only"),
        ("cgc", [level(1, (1,), 4)] * 2, "'cgc' has one level, not 2"),
        ("adatt", [level(1, (1, 0), 4)], "level 1: kind 'adatt' needs at least one expert"),
        ("stem", [level(0, (1, 1), 4)], "level 1: kind 'stem' needs at least one shared"),
        ("ple", [level(1, (1,), 4, group_experts=(1,))], "`group_experts` has no effect"),
        ("home", [level(1, (1,), 4)], "'home' has two levels"),
    ],
)
def test_what_a_kind_cannot_be_built_from_is_refused(kind, levels, message) -> None:
    with pytest.raises(ValueError, match=message):
        wire(kind, levels)


@pytest.mark.parametrize(
    ("groups", "message"),
    [(((0, 1),), "each task exactly once"), (((0, 1), (2,), ()), "a group without tasks")],
)
def test_groups_hold_each_task_once(groups, message) -> None:
    with pytest.raises(ValueError, match=message):
        wire("home", STACKS["home"][0][1], groups)
    with pytest.raises(ValueError, match="`groups` has no effect with kind 'ple'"):
        wire("ple", STACKS["ple"][0][1], GROUPS)


@pytest.mark.parametrize(
    ("kind", "fusion", "message"),
    [
        ("cgc", "product", "has no effect with one level"),
        ("mmoe", "product", "which this kind does not have"),
        ("ple", "sum", "fusion 'sum' is unknown"),
    ],
)
def test_a_fusion_without_effect_is_refused(kind, fusion, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(*STACKS[kind][-1], fusion=fusion)
