"""Tasks of every kind, saved as a bundle and loaded, score raw rows as the trainer does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.loader import BatchLoader
from pipeline.evaluation.scores import score
from pipeline.model import build_heads, build_ranker
from pipeline.registry.bundle import save_bundle
from pipeline.registry.scorer import RowScorer

TASKS = [
    {"name": "click", "negatives_kept": 0.1},
    {"name": "buy", "label": "spent > 0.5", "space": "click", "propensity": "click"},
    {"name": "both", "label": "click & spent > 0.5", "product_of": ["click", "buy"]},
    {"name": "big", "label": "click & spent > 0.9", "transfer_from": "click"},
    {"name": "spent", "loss": "ziln"},
    {"name": "most", "label": "spent", "loss": "quantile", "quantile": 0.9},
    {"name": "stars", "label": "click", "loss": "ordinal", "ordinal_range": [0, 3]},
    {"name": "amount", "label": "spent", "loss": "huber", "transfer_from": "spent"}
    | {"transfer_penalty": 0},
    {"name": "plain", "label": "click", "label_smoothing": 0.1, "tower_hidden": []},
]


def replace_kept(task):
    """The task as if its negatives had not been sampled."""
    return task.model_copy(update={"negatives_kept": None})


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory: pytest.TempPathFactory):
    experiment = trained.configured(tasks=TASKS)
    torch.manual_seed(2)
    ranker = build_ranker(experiment, trained.transforms, "cpu")
    with torch.no_grad():
        for name, value in ranker.state_dict().items():
            if value.is_floating_point() and "embedding_bags" not in name:
                value.add_(0.1 * torch.rand_like(value))
    bundle: Path = tmp_path_factory.mktemp("served") / "bundle"
    save_bundle(
        bundle, replace(trained.trained(), experiment=experiment, state=ranker.state_dict())
    )
    return experiment, ranker.eval(), RowScorer.load(bundle)


def test_scores_are_those_of_the_trainer(served, trained) -> None:
    experiment, ranker, scorer = served
    loader = BatchLoader(
        folder=trained.folder / "data",
        manifest=trained.manifest,
        split="test",
        transforms=trained.transforms,
        tasks=experiment.tasks,
        sample_weight=None,
        batch_size=200,
        streams=1,
        shuffle_rows=0,
        seed=0,
    )
    (batch,) = loader.epoch(0)
    with torch.no_grad():
        outputs_BO = ranker(batch.ids, batch.weighted_ids, batch.dense_BN)
    heads = build_heads(experiment.tasks)
    assert outputs_BO.shape == (200, heads.outputs) == (200, 1 + 1 + 0 + 1 + 3 + 1 + 3 + 1 + 1)
    expected = score(heads.predictions(outputs_BO), experiment.tasks).numpy()
    got = scorer.score_table(trained.raw_rows(200, 200))
    assert scorer.task_names == tuple(task["name"] for task in TASKS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(got, axis=0).min() > 0


def test_dependent_scores_keep_their_relations(served, trained) -> None:
    experiment, ranker, scorer = served
    rows = trained.raw_rows(50, seed=9)
    scores = dict(zip(scorer.task_names, scorer.score_table(rows).T, strict=True))
    np.testing.assert_allclose(scores["both"], scores["click"] * scores["buy"], rtol=1e-9)
    unsampled = [replace_kept(task) for task in experiment.tasks]
    p = trained.scores_in_training(
        experiment.model_copy(update={"tasks": unsampled}), ranker, rows
    )[:, 0]
    np.testing.assert_allclose(scores["click"], p / (p + (1 - p) / 0.1), rtol=1e-6)
    assert (scores["spent"] > 0).all()
    assert ((scores["stars"] > 0) & (scores["stars"] < 3)).all()
