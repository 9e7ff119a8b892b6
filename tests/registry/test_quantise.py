"""What smaller tables cost is measured on the test split."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from pipeline.registry.bundle import save_bundle
from pipeline.registry.quantise import quantisation_cost
from pipeline.registry.scorer import WEIGHTS_FILE, RowScorer


@pytest.fixture(autouse=True)
def every_table_is_large(monkeypatch):
    monkeypatch.setattr("ple.serving_tables._LARGE_ROWS", 2)


@pytest.fixture(scope="module")
def smaller(trained):
    """The trained model, to be registered with tables of one byte per number."""
    experiment = trained.configured(artifact={"table_precision": "int8"})
    return replace(trained.trained(), experiment=experiment)


def test_costs_are_those_of_scikit_learn(trained, smaller):
    cost = quantisation_cost(smaller, "int8")
    rows = trained.raw_rows(200, 200)
    labels, spent = rows["click"].to_numpy(), rows["spent"].to_numpy()
    scores = {p: smaller.scorer(p).score_table(rows) for p in ("fp32", "int8")}
    full, small = (roc_auc_score(labels, s[:, 0]) for s in scores.values())
    worse = [np.sqrt(np.mean((s[:, 1] - spent) ** 2)) for s in scores.values()]
    values = cost.values()
    assert values["quantisation/click/auc_cost"] == pytest.approx(full - small, abs=1e-9)
    assert values["quantisation/spent/rmse_cost"] == pytest.approx(worse[1] - worse[0], abs=1e-7)
    assert values["quantisation/rows"] == 200
    # A bank of tables of width 4 and one of width 3, each with a row of zeros.
    wide = 1 + sum(t.rows for t in trained.transforms.tables if t.dim == 4)
    narrow = 1 + sum(t.rows for t in trained.transforms.tables if t.dim == 3)
    ratio = (wide * (4 + 8) + narrow * (3 + 8)) / (wide * 16 + narrow * 12)
    assert values["quantisation/size_ratio"] == pytest.approx(ratio)


def test_a_bundle_keeps_bytes_and_scores_as_the_model_in_memory(trained, smaller, tmp_path):
    save_bundle(tmp_path / "bundle", smaller)
    weights = load_file(tmp_path / "bundle" / WEIGHTS_FILE)
    assert {v.dtype for n, v in weights.items() if "banks" in n} == {torch.uint8}
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert description["table_precision"] == "int8"
    rows = trained.raw_rows(30, 4)
    np.testing.assert_allclose(
        RowScorer.load(tmp_path / "bundle").score_table(rows),
        smaller.scorer("int8").score_table(rows),
        atol=1e-7,
    )
