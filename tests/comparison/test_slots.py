"""Slots on real Ray actors: two workers in one group, a fault told, a killed process noticed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from small_datasets import write_dataset

from pipeline.cluster.session import Placement
from pipeline.comparison.runs import RunSpec, run_spec
from pipeline.comparison.slots import RunEnd, Slot
from pipeline.config import Experiment
from pipeline.data.fitting import fit_transforms

pytestmark = pytest.mark.slow

Build = Callable[..., Experiment]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    # The authentication of this process's first session stays: it is the same in every test file.
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def spec(experiment: Build, tmp_path: Path) -> RunSpec:
    rows = 256
    table = pa.table(
        {
            "user": pa.array([f"u{n % 9}" for n in range(rows)]),
            "age": pa.array([float(n % 7) for n in range(rows)], pa.float32()),
            "click": pa.array([int(n % 9 > 4) for n in range(rows)], pa.int8()),
            "like": pa.array([int(n % 7 > 4) for n in range(rows)], pa.int8()),
            "watch": pa.array([float(n % 7) for n in range(rows)], pa.float32()),
        }
    )
    roles = {"user": "categorical", "age": "numeric"}
    roles |= dict.fromkeys(("click", "like", "watch"), "label")
    splits = {split: [(table, 64)] for split in ("train", "valid", "test")}
    manifest = write_dataset(tmp_path / "data", splits, roles)
    data = {"path": str(tmp_path / "data"), "batch_size": 32, "evaluation_batch_size": 64}
    config = experiment(data=data, train={"epochs": 2})
    fit_transforms(config.features, config.data.path).save(tmp_path / "run" / "transforms")
    manifest.save(tmp_path / "run" / "dataset")
    return run_spec(config, manifest.digest, "ple", None, 0)


def wait(slot: Slot) -> RunEnd:
    for _ in range(600):
        end = slot.poll(0.2)
        if end is not None:
            return end
    raise AssertionError("the run did not end")


def test_one_and_two_workers_agree_and_processes_stay(
    session: None, spec: RunSpec, tmp_path: Path
) -> None:
    aucs = []
    for workers in (1, 2):
        slot = Slot(Placement(workers, "cpu", 1, 1))
        for _ in range(2):
            slot.start(spec, tmp_path / "run")
            end = wait(slot)
            assert end.result is not None, end.failure
            aucs.append(end.result.splits["test"]["click"]["auc"])
        slot.close()
    assert aucs[0] == aucs[1]
    assert aucs == pytest.approx([aucs[0]] * 4, abs=1e-3)


def test_a_fault_is_told_and_the_slot_goes_on(session: None, spec: RunSpec, tmp_path: Path) -> None:
    slot = Slot(Placement(1, "cpu", 1, 1))
    data = spec.experiment.data.model_copy(update={"path": str(tmp_path / "nowhere")})
    broken = spec.experiment.model_copy(update={"data": data})
    slot.start(run_spec(broken, "digest", "ple", None, 0), tmp_path / "run")
    end = wait(slot)
    assert end.result is None
    assert not end.may_pass
    assert "cannot open this shard" in end.failure
    slot.start(spec, tmp_path / "run")
    assert wait(slot).result is not None
    slot.close()


def test_a_killed_worker_may_be_tried_again(session: None, spec: RunSpec, tmp_path: Path) -> None:
    slot = Slot(Placement(1, "cpu", 1, 1))
    slot.start(spec, tmp_path / "run")
    ray.kill(slot._actors[0])
    end = wait(slot)
    assert end.result is None
    assert end.may_pass
    assert "worker(s) 0 of 1 died" in end.failure
    slot.start(spec, tmp_path / "run")
    assert wait(slot).result is not None
    slot.close()
