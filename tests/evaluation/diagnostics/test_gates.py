"""Figures of gates against NumPy, and what is flagged."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.diagnostics.gates import GateSums, gate_flags, unused_experts

EXPERTS = ("click 1", "click 2", "shared 1")


def report(gates, real=None, experts=EXPERTS, stream="click"):
    gates = np.asarray(gates, float)
    real = np.ones(len(gates), bool) if real is None else np.asarray(real)
    sums = GateSums(gates.shape[1], "cpu")
    for first in range(0, len(gates), 3):
        part = slice(first, first + 3)
        sums.add(torch.tensor(gates[part]), torch.tensor(real[part]))
    return sums.report(1, stream, experts)


def test_mean_deviation_and_entropy_over_real_rows():
    rng = np.random.default_rng(0)
    gates = rng.dirichlet((1.0, 2.0, 3.0), 50)
    real = rng.random(50) < 0.7
    gates[~real] = np.nan  # what padding rows hold must not matter
    got = report(gates, real)
    seen = gates[real]
    assert got.rows == real.sum()
    np.testing.assert_allclose(got.mean, seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.deviation, seen.std(0), rtol=1e-9)
    entropy = -(seen * np.log(seen)).sum(1).mean() / np.log(3)
    assert got.entropy == pytest.approx(entropy, rel=1e-9)


def test_entropy_of_even_and_single_mixtures():
    assert report([[1 / 3] * 3] * 4).entropy == pytest.approx(1.0)
    assert report([[1.0, 0.0, 0.0]] * 4).entropy == 0.0
    assert report([[1.0]] * 4, experts=("shared 1",)).entropy is None


def test_a_gate_that_always_takes_the_same_expert_has_collapsed():
    got = report([[0.01, 0.02, 0.97]] * 96 + [[0.4, 0.3, 0.3]] * 4)
    assert got.collapsed_onto == "shared 1"
    assert not got.polarised
    assert gate_flags([got])[0] == (
        "level 1, gate of click: collapsed onto shared 1 (96% of rows give it 95% or more)"
    )
    assert report([[0.01, 0.02, 0.97]] * 94 + [[0.4, 0.3, 0.3]] * 6).collapsed_onto is None


def test_a_gate_that_switches_between_experts_is_polarised():
    got = report([[0.0, 0.0, 1.0]] * 50 + [[0.98, 0.0, 0.02]] * 50)
    assert got.collapsed_onto is None
    assert got.polarised
    assert "polarised (100% of rows" in gate_flags([got])[0]
    mixed = report([[0.0, 0.0, 1.0]] * 50 + [[0.5, 0.0, 0.5]] * 50)
    assert not mixed.polarised


def test_an_expert_is_unused_where_no_gate_wants_it():
    click = report([[0.5, 0.002, 0.498]] * 9)
    like = report([[0.9, 0.1]] * 9, experts=("like 1", "shared 1"), stream="like")
    shared = report(
        [[0.3, 0.005, 0.3, 0.395]] * 9, experts=("click 1", "click 2", "like 1", "shared 1")
    )
    ((level, name, most),) = unused_experts([click, like, shared])
    assert (level, name) == (1, "click 2")
    assert most == pytest.approx(0.005)
    assert gate_flags([click, like, shared]) == [
        "level 1: click 2 is unused (at most 0.50% of any gate's weight)"
    ]


def test_a_gate_of_one_expert_is_nothing_to_flag():
    assert gate_flags([report([[1.0]] * 9, experts=("shared 1",))]) == []
