"""An artifact is registered only if it scores as the trainer did."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.models import Model
from safetensors.torch import load_file, save_file

from pipeline.data.loader import BatchLoader
from pipeline.data.raw_rows import raw_rows
from pipeline.evaluation.scored_rows import RowKeeper, ScoredRows
from pipeline.model import build_heads
from pipeline.registry.artifact import register_model
from pipeline.registry.bundle import save_pyfunc
from pipeline.registry.columns import arrow_schema
from pipeline.registry.parity import ParityError, check_parity
from pipeline.registry.tracking import Tracker

WEIGHTS = "artifacts/bundle/weights.safetensors"


@pytest.fixture(scope="module")
def sample(trained) -> ScoredRows:
    """The trainer's scores of 60 test rows, as an evaluation of one of two workers keeps them."""
    tasks = trained.experiment.tasks
    loader = BatchLoader(
        folder=trained.folder / "data",
        manifest=trained.manifest,
        split="test",
        transforms=trained.transforms,
        tasks=tasks,
        sample_weight=None,
        batch_size=32,
        streams=4,
        shuffle_rows=0,
        seed=0,
        rank=1,
        world_size=2,
    )
    keeper = RowKeeper("test", tasks, limit=60)
    heads = build_heads(tasks)
    for batch in loader.epoch(0):
        with torch.no_grad():
            outputs_BO = trained.ranker(batch.ids, batch.weighted_ids, batch.dense_BN)
        rows_B = loader.rows_of(0, batch.cursor["step"] - 1)
        predictions_BT = heads.predictions(outputs_BO.double())
        keeper.add(rows_B, predictions_BT, batch.labels_BT, batch.weights_BT)
    kept = keeper.kept()
    assert keeper.full
    assert kept is not None
    return kept


@pytest.fixture(scope="module")
def raw(trained, sample):
    schema = arrow_schema(trained.trained().column_types)
    types = dict(zip(schema.names, schema.types, strict=True))
    return raw_rows(str(trained.folder / "data"), trained.manifest, "test", sample.rows_B, types)


@pytest.fixture(scope="module")
def model_folder(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    example = trained.raw_rows(2, 7).to_pandas()
    return save_pyfunc(folder, Model(), trained.trained(), example)


def test_kept_rows_are_found_again_in_the_files(trained, sample, raw):
    """Their numbers lead to the raw rows with their labels, in their order."""
    assert sample.rows_B.size == 60 == len(set(sample.rows_B))
    # Worker 1 of 2 has the upper half of the 200 rows.
    assert sample.rows_B.min() == 100
    everything = trained.raw_rows(200, 200)
    np.testing.assert_array_equal(
        everything["spent"].to_numpy()[sample.rows_B].astype(np.float32), sample.labels_BT[:, 1]
    )
    assert raw.to_pylist() == everything.take(sample.rows_B).select(raw.schema.names).to_pylist()


@pytest.mark.slow
def test_an_honest_artifact_passes_in_a_process_without_torchrec_and_ray(
    trained, sample, raw, model_folder
):
    parity = check_parity(model_folder, trained.experiment.tasks, sample, raw, "fp32")
    assert parity.rows == 60
    assert 0 <= max(parity.differences.values()) < 1e-6
    trainer, artifact = parity.aucs["click"]
    assert abs(trainer - artifact) < 1e-9
    assert 0.2 < trainer < 0.8
    assert set(parity.values()) == {"parity/click/difference", "parity/spent/difference"}


def test_a_difference_names_task_row_and_size(trained, sample, raw, model_folder, monkeypatch):
    scores_BT = sample.scores_BT.copy()
    scores_BT[17, 1] += 3e-5
    monkeypatch.setattr("pipeline.registry.parity._scores_of", lambda *_: scores_BT)
    tasks = trained.experiment.tasks
    with pytest.raises(ParityError) as error:
        check_parity(model_folder, tasks, sample, raw, "fp32")
    for text in (
        "task 'spent'",
        f"row {sample.rows_B[17]} of the test split",
        "difference of 3e-05",
    ):
        assert text in str(error.value)
    scores_BT[17, 1] += 5e-3  # one row of 60 is rounded up to the tail of a hundredth
    with pytest.raises(ParityError, match=r"where 0\.001 is allowed"):
        check_parity(model_folder, tasks, sample, raw, "fp16")
    assert check_parity(model_folder, tasks, sample, raw, "int8").tolerance == 1e-3
    scores_BT[18, 1] += 5e-3
    with pytest.raises(ParityError, match=r"Set artifact\.table_precision to fp32"):
        check_parity(model_folder, tasks, sample, raw, "int8")
    scores_BT[17, 1] = float("nan")
    with pytest.raises(ParityError, match="nan against"):
        check_parity(model_folder, tasks, sample, raw, "int8")


def test_an_auc_that_moves_is_refused(trained, sample, raw, model_folder, monkeypatch):
    """All but tied scores in another order: every score is within bounds, the ranking is not."""
    tied = replace(sample, scores_BT=np.full_like(sample.scores_BT, 0.5))
    tied.scores_BT[:, 0] += 1e-7 * sample.labels_BT[:, 0]
    monkeypatch.setattr("pipeline.registry.parity._scores_of", lambda *_: 1.0 - tied.scores_BT)
    with pytest.raises(ParityError, match=r"'click' has AUC 0\.000000 against 1\.000000"):
        check_parity(model_folder, trained.experiment.tasks, tied, raw, "fp32")


@pytest.mark.slow
def test_an_artifact_that_scores_otherwise_is_not_registered(trained, sample, monkeypatch):
    """Served weights that are not the trained ones: the logged model has failed, no version is
    there, and the alias stays where it was."""

    def damaged(*arguments):
        path = save_pyfunc(*arguments)
        weights = load_file(path / WEIGHTS)
        name = next(name for name in sorted(weights) if name.startswith("towers."))
        weights[name] = weights[name] + 0.01
        save_file(weights, path / WEIGHTS)
        return path

    monkeypatch.setattr("pipeline.registry.artifact.save_pyfunc", damaged)
    experiment = trained.configured(
        storage={"path": str(trained.folder / "runs")}, mlflow={"model_name": "never"}
    )
    state, example = trained.ranker.state_dict(), trained.raw_rows(2, 7).to_pandas()
    with (
        pytest.raises(ParityError, match="does not score as the trainer: task '"),
        Tracker.start(experiment, trained.manifest) as tracker,
    ):
        register_model(
            tracker,
            experiment,
            trained.transforms,
            trained.manifest,
            state,
            {},
            example,
            1,
            sample=sample,
        )
    client = tracker.client
    assert not client.search_model_versions("name='never'")
    (logged,) = client.search_logged_models(
        [tracker.run.experiment_id], filter_string=f"source_run_id='{tracker.run_id}'"
    )
    assert str(logged.status) == "FAILED"
    assert client.get_run(tracker.run_id).info.status == "FAILED"
