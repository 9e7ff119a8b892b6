"""A run whose folder is in an object store: trained, stopped, resumed, exported from there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from resumed_runs import StopAt, small_experiment, train_on, write_run
from s3_server import SECRET_KEY, S3Server, s3_server

from pipeline.cluster.run_file import RunFile, last_checkpoint, remove_run_folder, run_to_resume

pytestmark = pytest.mark.slow


@pytest.fixture
def s3() -> Iterator[S3Server]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with s3_server() as server:
        yield server
    dist.destroy_process_group()


def test_a_run_lives_in_an_object_store(s3: S3Server, tmp_path: Path) -> None:
    from jobs.prepare import main as prepare
    from pipeline.checkpoint.weights import load_unsharded
    from pipeline.config.load import parse_experiment
    from pipeline.data.transforms import FeatureTransforms
    from pipeline.model import build_ranker

    data = tmp_path / "data"
    assert prepare(["clicklog", "--rows", "2000", "--output", str(data)]) == 0
    tree = small_experiment(data, train={"epochs": 1}, evaluation={"slices": ["device"]})
    vocabulary = next(f for f in tree["features"]["categorical"] if f["name"] == "device")
    vocabulary["encoder"] = "vocabulary"
    experiment = parse_experiment(tree)
    folder = s3.uri("runs/abc", credentials=True)
    write_run(folder, experiment)
    RunFile.new("abc", "clicklog", {}).save(folder)
    assert train_on(experiment, folder, 0, 1, StopAt(6, "training step"))[0] is None
    assert last_checkpoint(folder) == 6
    run = run_to_resume(s3.uri("runs", credentials=True), "clicklog", None)
    assert run is not None
    assert run.run_id == "abc"

    result, heard = train_on(experiment, folder, 0, 1)
    assert heard.notes == ["going on after step 6 of 16"]
    assert result.steps == 16
    assert set(result.splits["test"]["click"]["slices"]["device"]) >= {"tv", "web"}
    transforms = FeatureTransforms.load(s3.uri("runs/abc/transforms", credentials=True))
    ranker = build_ranker(experiment, transforms, device="cpu")
    before = {name: value.clone() for name, value in ranker.state_dict().items()}
    load_unsharded(ranker, result.checkpoint)
    assert any(not value.equal(before[name]) for name, value in ranker.state_dict().items())
    assert not any(SECRET_KEY in note for note in heard.notes)
    remove_run_folder(folder)
    assert s3.files("runs/abc") == []
