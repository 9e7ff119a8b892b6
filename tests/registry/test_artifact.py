"""A registered version, loaded by a clean process, scores raw rows as the trainer would."""

import json
import os
import subprocess
import sys
import tempfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import mlflow.models
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from mlflow.models import validate_serving_input
from safetensors.torch import load_file, save_file

from pipeline.registry.bundle import save_bundle
from pipeline.registry.client import download_version, score_rows
from pipeline.registry.columns import RowError
from pipeline.registry.scorer import WEIGHTS_FILE, BundleError, RowScorer
from pipeline.registry.served_code import pinned_requirements
from pipeline.registry.tracking import Tracker
from pipeline.registry.uris import TrackingError

Registered = namedtuple("Registered", "tracker version")


@pytest.fixture(scope="module")
def registered(trained):
    """The first version, registered with nothing left behind."""
    with pytest.MonkeyPatch.context() as patch:
        temporary = trained.folder / "temporary"
        temporary.mkdir()
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.chdir(temporary)
        with Tracker.start(trained.experiment, trained.manifest) as tracker:
            version = trained.register(tracker, trained.experiment)
        assert not list(temporary.iterdir()), "temporary files, or a second store, left behind"
    return Registered(tracker, version)


@pytest.fixture
def scorer(trained):
    return trained.scorer


def test_raw_rows_score_as_the_trainer_scores_them(trained, scorer):
    rows = trained.raw_rows(200, 200).to_pandas()  # what _prepare wrote as the valid split
    scores = scorer.score_frame(rows)
    assert list(scores.columns) == ["click", "spent"]
    expected = trained.trainer_scores("valid")
    assert len(expected) == 200
    by_label = [expected[float(np.float32(label))] for label in rows["spent"]]
    np.testing.assert_allclose(scores.to_numpy(), by_label, atol=1e-6)
    assert scores["click"].std() > 1e-3


def test_chunks_do_not_change_scores(trained, scorer, monkeypatch):
    table = trained.raw_rows(50, 12)
    whole = scorer.score_table(table)
    monkeypatch.setattr("pipeline.registry.scorer._CHUNK_ROWS", 7)
    np.testing.assert_allclose(scorer.score_table(table), whole, atol=1e-6)


def test_no_rows_give_no_scores(scorer):
    scores = scorer.score_frame(pd.DataFrame({"user": pd.Series([], dtype=str)}))
    assert scores.shape == (0, 2)


def test_absent_columns_nulls_and_empty_lists_score_alike(scorer):
    nothing = {name: [None] for name in scorer.schema.names}
    empty = nothing | {"tags": [[]], "words": [[]], "relevance": [[]], "price": [float("nan")]}
    frames = [pd.DataFrame(index=["x"]), pd.DataFrame(nothing), pd.DataFrame(empty)]
    scores = [scorer.score_frame(frame).to_numpy() for frame in frames]
    assert np.isfinite(scores[0]).all()
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_unknown_ids_share_one_score_that_is_not_that_of_missing(scorer):
    users = pd.DataFrame({"user": ["never seen", "nor this", None, "u3"]}, index=[7, 3, 3, 1])
    scored = scorer.score_frame(users)["click"]
    assert list(scored.index) == [7, 3, 3, 1]
    scores = scored.to_numpy()
    assert scores[0] == scores[1]
    assert len(set(scores)) == 3


def test_crosses_and_mapped_ids_matter(scorer):
    """A column that only a cross reads moves scores; an id the map holds has a row of its own."""
    shelves = scorer.score_frame(pd.DataFrame({"item": [5, 5, 5], "shelf": ["s1", "s2", None]}))
    assert len(set(shelves["click"])) == 3
    visitors = scorer.score_frame(pd.DataFrame({"visitor": range(60)}))["click"]
    # 28 rows of single ids, 4 of the buckets' others; scores differ in the last bit by place.
    assert 20 < visitors.round(6).nunique() <= 28 + 4


def test_a_wrong_value_names_its_column(scorer):
    with pytest.raises(RowError, match="column 'item' must hold int64"):
        scorer.score_frame(pd.DataFrame({"item": ["seven"]}))


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    whole = trained.trained()
    state = dict(whole.state)
    state.pop(next(iter(state)))
    with pytest.raises(RuntimeError, match="Missing key"):
        save_bundle(tmp_path / "one", replace(whole, state=state))
    save_bundle(tmp_path / "two", whole)
    weights = load_file(tmp_path / "two" / WEIGHTS_FILE)
    weights.pop(sorted(weights)[-1])
    save_file(weights, tmp_path / "two" / WEIGHTS_FILE)
    with pytest.raises(RuntimeError, match="Missing key"):
        RowScorer.load(tmp_path / "two")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"format_version": 1}, "model format 1, this code reads 3: register the model again"),
        ({"tasks": ["click"]}, "no model of this project"),
        (None, "no model of this project"),
    ],
)
def test_a_bundle_of_another_format_is_refused(description, message, tmp_path):
    if description is not None:
        (tmp_path / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match=message):
        RowScorer.load(tmp_path)


def test_the_version_is_linked_tagged_and_described(registered, trained):
    client, version = registered.tracker.client, registered.version
    assert version.uri == "models:/shop.ranker/1"
    found = client.get_model_version_by_alias("shop.ranker", "candidate")
    assert (found.version, found.run_id) in (
        (1, registered.tracker.run_id),
        ("1", registered.tracker.run_id),
    )
    assert found.tags["dataset.digest"] == trained.manifest.digest
    for text in ("click AUC 0.75", "spent RMSE 2.0", trained.manifest.digest, "model_card.md"):
        assert text in found.description
    logged = client.get_logged_model(version.model_id)
    assert (logged.name, str(logged.status)) == ("shop_ranker", "READY")
    assert {(m.key, m.value, m.step) for m in logged.metrics} == {
        ("test/click/auc", 0.75, 40),
        ("test/click/rows", 200, 40),
        ("test/click/positives", 50, 40),
        ("test/spent/rmse", 2.0, 40),
        ("test/spent/rows", 200, 40),
    }
    run = client.get_run(registered.tracker.run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [version.model_id]
    assert run.info.status == "FINISHED"


def test_the_artifact_holds_what_scoring_needs_and_no_more(registered, trained, tmp_path):
    path = download_version(trained.experiment, registered.version.uri, str(tmp_path))
    files = {
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, names in os.walk(path)
        for name in names
    }
    assert {
        "MLmodel",
        "input_example.json",
        "model_card.md",
        "requirements.txt",
        "artifacts/bundle/weights.safetensors",
        "artifacts/bundle/transforms/transforms.json",
        "code/ple/ranker.py",
        "code/pipeline/registry/scorer.py",
    } <= files
    code = [f for f in files if f.startswith("code/")]
    assert all(f.endswith(".py") for f in code)
    training = (
        "training",
        "cluster",
        "recipes",
        "tracking",
        "run.py",
        "console",
        "writer",
        "loader",
    )
    assert not [f for f in code if any(part in f for part in training)]
    text = Path(path, "MLmodel").read_text()
    for machine_path in (str(trained.folder), str(Path(__file__).parents[2])):
        assert machine_path not in text
    assert "NaN" not in Path(path, "input_example.json").read_text()
    loaded = mlflow.models.Model.load(path)
    assert loaded.run_id == registered.tracker.run_id
    names = [c.name for c in loaded.signature.inputs.inputs]
    assert names[:6] == ["user", "item", "visitor", "tags", "words", "price"]
    assert names[6:] == ["age", "relevance", "shelf"]
    assert [c.name for c in loaded.signature.outputs.inputs] == ["click", "spent"]
    pins = Path(path, "requirements.txt").read_text().split()
    assert pins == pinned_requirements()
    assert f"torch=={torch.__version__.partition('+')[0]}" in pins


def test_a_second_registration_moves_the_alias(registered, trained):
    with Tracker.start(trained.experiment, trained.manifest) as tracker:
        second = trained.register(tracker, trained.experiment)
    client = tracker.client
    assert (second.version, second.uri) == ("2", "models:/shop.ranker/2")
    assert str(client.get_model_version_by_alias("shop.ranker", "candidate").version) == "2"
    client.set_registered_model_alias("shop.ranker", "candidate", registered.version.version)


def test_a_run_that_comes_again_gets_the_version_it_made(trained):
    experiment = trained.experiment.model_copy(
        update={"mlflow": trained.experiment.mlflow.model_copy(update={"model_name": "again"})}
    )
    with Tracker.start(experiment, trained.manifest) as tracker:
        first = trained.register(tracker, experiment)
        assert trained.register(tracker, experiment) == first
        fp16 = experiment.artifact.model_copy(update={"table_precision": "fp16"})
        other = trained.register(tracker, experiment.model_copy(update={"artifact": fp16}))
    with Tracker.start(experiment, trained.manifest) as tracker:
        another_run = trained.register(tracker, experiment)
    assert [v.version for v in (first, other, another_run)] == ["1", "2", "3"]


def test_rows_scored_through_the_registry(registered, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    scores = score_rows(
        trained.experiment, "models:/shop.ranker@candidate", trained.raw_rows(3, 7).to_pandas()
    )
    expected = trained.scorer.score_frame(trained.raw_rows(3, 7).to_pandas())
    pd.testing.assert_frame_equal(scores, expected)
    assert sys.path == before
    assert not list(tmp_path.iterdir()), "MLflow opened a store of its own here"


def test_the_serving_payload_of_mlflow_is_scored(registered, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path)  # loading changes it
    path = download_version(trained.experiment, registered.version.uri, str(tmp_path))
    records = [
        {"user": "u3", "item": 7, "tags": [1, 2], "words": ["w1"], "relevance": [0.5], "price": 1},
        {"user": None, "item": None, "tags": [], "words": None, "relevance": None, "price": None},
    ]
    answer = validate_serving_input(path, json.dumps({"dataframe_records": records}))
    expected = trained.scorer.score_frame(pd.DataFrame(records))
    pd.testing.assert_frame_equal(answer, expected)


@pytest.mark.parametrize("uri", ["models:/shop.ranker@gone", "models:/none/1", "runs:/x/model"])
def test_a_version_that_does_not_exist_is_named(registered, trained, uri, tmp_path):
    with pytest.raises(TrackingError, match=uri):
        download_version(trained.experiment, uri, str(tmp_path))


CLEAN_PROCESS = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/shop.ranker@candidate")
rows = pd.DataFrame({
    "user": ["u3", "never seen", None, "u4"],
    "item": [3, 10**15, None, 5],
    "visitor": [1, 10**15, None, 2],
    "shelf": ["s1", "s2", None, "never seen"],
    "tags": [[1, 2, 3, 4], [999], None, []],
    "words": [["w1", "w2"], ["none"], None, []],
    "relevance": [[0.5, 2.0], [1.0], None, []],
    "price": [0.25, None, float("nan"), 1],
    "unused": [0, 0, 0, 0],
}, index=[10, 7, 3, 1])
scores = model.predict(rows)
import pipeline
print(json.dumps({
    "scores": scores.to_dict("list"),
    "index": list(scores.index),
    "ray": "ray" in sys.modules,
    "pipeline": pipeline.__file__,
}))
"""


@pytest.mark.slow
def test_a_clean_process_elsewhere_scores_raw_rows(registered, trained, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, registered.tracker.run.tracking_uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["index"] == [10, 7, 3, 1]
    assert got["ray"] is False
    assert str(trained.folder / "runs") in got["pipeline"]
    table = pa.table(
        {
            "user": ["u3", "never seen", None, "u4"],
            "item": [3, 10**15, None, 5],
            "visitor": [1, 10**15, None, 2],
            "shelf": ["s1", "s2", None, "never seen"],
            "tags": [[1, 2, 3, 4], [999], None, []],
            "words": [["w1", "w2"], ["none"], None, []],
            "relevance": [[0.5, 2.0], [1.0], None, []],
            "price": [0.25, None, None, 1.0],
            "age": pa.nulls(4, pa.int64()),
        }
    )
    scores = np.stack([got["scores"]["click"], got["scores"]["spent"]], axis=1)
    np.testing.assert_allclose(scores, trained.scorer.score_table(table), atol=1e-6)
