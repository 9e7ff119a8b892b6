"""Every kind of model, saved as a bundle and loaded, scores raw rows as it did before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.model import build_ranker
from pipeline.registry.bundle import save_bundle
from pipeline.registry.scorer import RowScorer

OWN = {"shared_experts": 1, "task_experts": 1, "hidden": [8]}
KINDS: dict[str, dict[str, Any]] = {
    "single_task": {"levels": [{"hidden": [8]}], "interaction": {"layers": 1, "rank": 4}},
    "mmoe": {"levels": [{"shared_experts": 2, "hidden": [8]}] * 2},
    "adatt": {"levels": [OWN, OWN], "fusion": "concatenation"},
    "home": {
        "levels": [
            {"shared_experts": 1, "group_experts": 1, "hidden": [8]},
            {"shared_experts": 1, "group_experts": 1, "task_experts": 2, "hidden": [8]},
        ],
        "groups": {"act": ["click"], "pay": ["spent"]},
    },
    "stem": {"levels": [OWN], "normalization": "batch"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_bundle_scores_as_the_model_it_was_made_of(kind, trained, tmp_path: Path) -> None:
    experiment = trained.configured(model={"kind": kind} | KINDS[kind])
    ranker = build_ranker(experiment, trained.transforms, "cpu")
    with torch.no_grad():  # running statistics and biases differ from their start
        for name, value in ranker.state_dict().items():
            if value.is_floating_point() and "embedding_bags" not in name:
                value.add_(0.1 * torch.rand_like(value))
    rows = trained.raw_rows(20, seed=3)
    before = trained.scores_in_training(experiment, ranker, rows)
    assert np.ptp(before, axis=0).min() > 0.0
    made_of = replace(trained.trained(), experiment=experiment, state=ranker.state_dict())
    save_bundle(tmp_path / "bundle", made_of)
    loaded = RowScorer.load(tmp_path / "bundle")
    np.testing.assert_allclose(loaded.score_table(rows), before, rtol=1e-5, atol=1e-6)
