"""Trainings that start from another one's checkpoint: once, whatever interrupts them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import StopAt, saved_state, small_experiment, train_on, write_run
from saved_states import group_of_one

from pipeline.config import ConfigError
from pipeline.config.init import InitConfig
from pipeline.config.load import parse_experiment
from pipeline.data.storage import open_store
from pipeline.data.transforms import FeatureTransforms

pytestmark = pytest.mark.slow


class _Unheard:
    def set_tags(self, tags: Any) -> None: ...

    def log_dict(self, tree: Any, file: str) -> None: ...


def first_loss(result: Any) -> float:
    """The mean training loss of the tasks when it was first logged."""
    losses = [r for r in result.history if (r["split"], r["metric"]) == ("train", "loss")]
    values = [r["value"] for r in losses if r["step"] == losses[0]["step"]]
    return float(sum(values) / len(values))


def test_a_run_starts_from_another_once(tmp_path: Path) -> None:
    from jobs.prepare import main as prepare
    from pipeline.checkpoint.weights import load_unsharded
    from pipeline.model import build_ranker
    from pipeline.registry.init_source import Beginning
    from pipeline.training.warm_start_weights import CheckpointWeights

    data = tmp_path / "data"
    assert prepare(["clicklog", "--rows", "2000", "--output", str(data)]) == 0
    sections = {"dense_optimizer": {"ema_decay": 0.9}, "storage": {"path": str(tmp_path)}}
    experiment = parse_experiment(small_experiment(data, **sections, train={"epochs": 1}))
    write_run(tmp_path / "first", experiment)
    transforms = FeatureTransforms.load(tmp_path / "first" / "transforms")
    with group_of_one(tmp_path / "group"):
        first, _ = train_on(experiment, tmp_path / "first", 0, 1)
        # The averaged weights are what a model starts from, as they are what is registered.
        ranker = build_ranker(experiment, transforms, "cpu")
        load_unsharded(ranker, first.checkpoint)
        weights = CheckpointWeights(open_store(first.checkpoint))
        for name, value in ranker.state_dict().items():
            if not name.startswith("embeddings."):
                assert torch.equal(weights.dense(name), value), name

        for name in ("whole", "torn"):
            write_run(tmp_path / name, experiment)
            beginning = Beginning(experiment, "first", transforms, None, lambda line: None)
            beginning.begin(_Unheard(), str(tmp_path / name))  # type: ignore[arg-type]
        result, heard = train_on(experiment, tmp_path / "whole", 0, 1)
        assert [n for n in heard.notes if n.startswith("started from")]
        # It begins where the other one ended.
        assert first_loss(result) < first_loss(first) - 0.01

        # Stopped before there was a checkpoint: it starts from the source again.
        _, heard = train_on(experiment, tmp_path / "torn", 0, 1, StopAt(0, "taking over"))
        assert [n for n in heard.notes if n.startswith("started from")]
        assert not (tmp_path / "torn" / "checkpoints").exists()
        _, heard = train_on(experiment, tmp_path / "torn", 0, 1, StopAt(4, "training step"))
        assert [n for n in heard.notes if n.startswith("started from")]
        # Resumed, it keeps the mapping it began with.
        changed = experiment.model_copy(update={"init": InitConfig(tasks={"click": None})})
        told: list[str] = []
        Beginning(experiment, "anything", transforms, str(tmp_path / "torn"), told.append)
        assert told == ["--init-from: left aside, this run goes on with its own weights"]
        with pytest.raises(ConfigError, match="began with another mapping"):
            Beginning(changed, None, transforms, str(tmp_path / "torn"), told.append)
        # Then never again: the source may go.
        shutil.rmtree(tmp_path / "first")
        _, heard = train_on(experiment, tmp_path / "torn", 0, 1)
        assert not [n for n in heard.notes if n.startswith("started from")]
    step = result.steps
    assert saved_state(tmp_path / "torn", step) == saved_state(tmp_path / "whole", step)
