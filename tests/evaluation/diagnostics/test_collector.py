"""The collector on real rankers of every kind, and merged over processes."""

import pytest
import torch
from processes import run_processes

import ple
from pipeline.evaluation.diagnostics import Diagnostics, DiagnosticsCollector
from ple.experts import ExpertBank

TASKS = ["click", "like"]
LEVELS = {
    "single_task": [ple.LevelSpec(0, (0, 0), (6, 4))],
    "shared_bottom": [ple.LevelSpec(0, (0, 0), (6, 4))],
    "moe": [ple.LevelSpec(3, (0, 0), (6, 4))] * 2,
    "mmoe": [ple.LevelSpec(3, (0, 0), (6, 4))] * 2,
    "cgc": [ple.LevelSpec(1, (2, 1), (6, 4))],
    "ple": [ple.LevelSpec(1, (2, 1), (6, 4)), ple.LevelSpec(2, (1, 1), (5,))],
    "adatt": [ple.LevelSpec(1, (2, 1), (6, 4))] * 2,
    "stem": [ple.LevelSpec(1, (2, 1), (6, 4))],
    "home": [
        ple.LevelSpec(1, (0, 0), (6, 4), group_experts=(2,)),
        ple.LevelSpec(1, (2, 1), (6, 4), group_experts=(2,)),
    ],
}


def ranker(kind):
    torch.manual_seed(0)
    groups = {"groups": [[0, 1]], "group_names": ["both"]} if kind == "home" else {}
    model = ple.Ranker(None, 5, LEVELS[kind], [(3,), (3,)], kind=kind, task_names=TASKS, **groups)
    return model.eval()


def collect(model, dense_BN, real_B, batch):
    collector = DiagnosticsCollector(model, "cpu")
    with torch.no_grad(), collector.watching():
        for first in range(0, len(dense_BN), batch):
            part = slice(first, first + batch)
            collector.begin(real_B[part])
            _, gates = model(None, None, dense_BN[part], return_gates=True)
            collector.add(gates)
    return collector.reduce()


def rows(n=40):
    generator = torch.Generator().manual_seed(1)
    dense_BN = torch.randn(n, 5, generator=generator)
    return dense_BN, torch.rand(n, generator=generator) < 0.8


@pytest.mark.parametrize("kind", LEVELS)
def test_every_kind_gives_gates_and_experts_by_name(kind):
    model = ranker(kind)
    dense_BN, real_B = rows()
    got = collect(model, dense_BN, real_B, 7)
    with torch.no_grad():
        _, gates = model(None, None, dense_BN, return_gates=True)
    expected = [gate_BE[real_B].double().mean(0) for level in gates for gate_BE in level]
    assert len(got.gates) == len(expected)
    for gate, mean_E in zip(got.gates, expected, strict=True):
        assert gate.mean == pytest.approx(mean_E.tolist(), abs=1e-6)
        assert gate.rows == real_B.sum()
    names = {name for level in model.gate_names() for _, experts in level for name in experts}
    assert names <= {expert.expert for expert in got.experts}
    assert got.mean_weights() == [
        [list(gate.mean) for gate in got.gates if gate.level == level]
        for level in sorted({gate.level for gate in got.gates})
    ]
    assert Diagnostics.from_tree(got.to_tree()) == got


def test_dead_units_are_those_never_positive_on_a_real_row():
    model = ranker("ple")
    dense_BN, real_B = rows()
    bank = model.extraction.levels[0].experts["task_0"]
    with torch.no_grad():
        bank.weights[0][1, 2] = 0.0  # unit 2 of the second expert's first layer
        bank.biases[0][1, 2] = -1.0
        bank.biases[1][0, :3] = -1e6
    got = {(e.level, e.expert): e for e in collect(model, dense_BN, real_B, 11).experts}
    weights, biases = (p[0].detach() for p in (bank.weights, bank.biases))
    x_BI = torch.nn.functional.pad(dense_BN, (0, weights.shape[2] - 5))[real_B]
    active_EO = (torch.einsum("bi,eoi->beo", x_BI, weights) + biases > 0).any(0)
    for number in (0, 1):
        expert = got[1, f"click {number + 1}"]
        assert expert.units == (6, 4)
        assert expert.dead_units[0] == int((~active_EO[number]).sum())
    assert got[1, "click 2"].dead_units[0] >= 1
    assert got[1, "click 1"].dead_units[1] >= 3
    flags = collect(model, dense_BN, real_B, 11).flags
    assert any("click 1" in flag and "units of layer 2 are dead" in flag for flag in flags)


def test_both_forms_of_the_experts_are_watched_alike():
    bank = ExpertBank(3, 4, (5, 6), normalization="layer")
    x_BI = torch.randn(8, 4)
    seen = {}
    for form in (bank.looped, bank.batched):
        layers = {}
        bank.watch = lambda layer, expert, h, into=layers: into.setdefault(layer, []).append(
            h if expert is None else h[:, None]
        )
        form(x_BI)
        seen[form.__name__] = [torch.cat(parts, 1) for _, parts in sorted(layers.items())]
    for looped, batched in zip(seen["looped"], seen["batched"], strict=True):
        torch.testing.assert_close(looped, batched)
    bank.watch = None


def test_nothing_is_watched_afterwards():
    model = ranker("ple")
    collect(model, *rows(), 9)
    banks = [b for level in model.extraction.levels for b in level.experts.values()]
    assert all(bank.watch is None for bank in banks)


def work(rank, world):
    dense_BN, real_B = rows(60)
    mine = slice(rank * 60 // world, (rank + 1) * 60 // world)
    return collect(ranker("ple"), dense_BN[mine], real_B[mine], 8).to_tree()


@pytest.mark.slow
def test_workers_merge_to_the_figures_of_one(tmp_path):
    one = collect(ranker("ple"), *rows(60), 8)
    for tree in run_processes(work, 2, tmp_path):
        many = Diagnostics.from_tree(tree)
        assert many.experts == one.experts
        for mine, theirs in zip(many.gates, one.gates, strict=True):
            assert mine.rows == theirs.rows
            assert mine.mean == pytest.approx(theirs.mean, abs=1e-6)
            assert mine.deviation == pytest.approx(theirs.deviation, abs=1e-6)
