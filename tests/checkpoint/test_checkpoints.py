"""Saving, keeping and loading on one worker: what is there after each step, and what is refused."""

import json
import resource
import shutil
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from saved_states import IDENTITY, SmallState, checkpoints_in, same
from torch import nn

from pipeline.checkpoint import files
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.marker import Marker
from pipeline.checkpoint.weights import load_unsharded
from pipeline.config.checkpoint import CheckpointConfig

pytestmark = pytest.mark.usefixtures("group")


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def save(checkpoints: Checkpoints, step: int, score: float | None = None, **more: int) -> None:
    checkpoints.save(SmallState(step), step=step, score=score, **more)
    checkpoints.wait()


def test_everything_comes_back(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    assert checkpoints.newest() is None
    state = SmallState(12)
    checkpoints.save(state, step=12, score=0.7, best_step=12)
    checkpoints.close()
    again = checkpoints_in(tmp_path)
    saved = again.newest()
    assert saved is not None
    assert (saved.step, saved.score, saved.best_step, saved.world_size) == (12, 0.7, 12, 1)
    assert saved.identity == IDENTITY
    assert saved.location == str(tmp_path / "step-00000012")
    loaded = SmallState(99)
    again.load(saved, loaded)
    assert same(loaded.flat(), state.flat())
    assert loaded.owns == [{"rank": 0, "sum": 4.0}]
    assert not again.skipped


def test_a_fault_of_the_thread_is_no_commit(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    with mock.patch.object(Checkpoints, "_write", side_effect=ZeroDivisionError):
        checkpoints.save(SmallState(3), step=3)
        with pytest.raises(ZeroDivisionError):
            checkpoints.wait()
    save(checkpoints, 3)
    assert saved_steps(tmp_path) == [3]


def test_what_is_saved_is_the_state_when_save_was_called(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    state = SmallState(1)
    expected = state.flat()
    gate = threading.Event()
    real = files.CheckedOutput.write

    def slow(self: files.CheckedOutput, data: bytes) -> None:
        assert gate.wait(30)
        real(self, data)

    with mock.patch.object(files.CheckedOutput, "write", slow):
        checkpoints.save(state, step=1)
        # The save has returned, and nothing is written yet.
        assert not list(tmp_path.glob("step-*/marker.json"))
        for tensor in [*state.model.values(), *state.moments.values()]:
            tensor.zero_()
        state.plain["rng"][:] = 0
        state.plain["step"] = 0
        gate.set()
        checkpoints.wait()
    loaded = SmallState(2)
    checkpoints.load(checkpoints.at(1), loaded)  # type: ignore[arg-type]
    assert same(loaded.flat(), expected)


def test_a_second_save_waits_for_the_first_and_uses_its_memory(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    before = {i: b.data_ptr() for i, b in checkpoints._staging._buffers.items()}
    for step in (2, 3, 4):
        checkpoints.save(SmallState(step), step=step)
    assert {i: b.data_ptr() for i, b in checkpoints._staging._buffers.items()} == before
    checkpoints.wait()
    assert saved_steps(tmp_path) == [3, 4]


def test_the_latest_the_best_and_what_they_call_best_are_kept(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path, keep_last=2, keep_best=2)
    save(checkpoints, 1, 0.9, best_step=1)
    save(checkpoints, 2, 0.5, best_step=1)
    save(checkpoints, 3, 0.8, best_step=1)
    save(checkpoints, 4, 0.1, best_step=1)
    save(checkpoints, 5, None, best_step=1)
    assert saved_steps(tmp_path) == [1, 3, 4, 5]
    save(checkpoints, 6, 0.95, best_step=6)
    assert saved_steps(tmp_path) == [1, 5, 6]
    # A run that comes back knows as much.
    checkpoints.close()
    save(checkpoints_in(tmp_path, keep_last=1, keep_best=1), 7, 0.2, best_step=6)
    assert saved_steps(tmp_path) == [6, 7]


def test_what_a_kept_one_calls_best_stays_without_a_score_of_its_own(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path, keep_last=1, keep_best=1)
    save(checkpoints, 1)
    save(checkpoints, 2, best_step=1)
    assert saved_steps(tmp_path) == [1, 2]
    save(checkpoints, 3, best_step=2)
    assert saved_steps(tmp_path) == [2, 3]
    save(checkpoints, 4, 0.5, best_step=4)
    assert saved_steps(tmp_path) == [4]


def test_the_same_step_twice_is_saved_once(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 3)
    marker = tmp_path / "step-00000003" / "marker.json"
    before = marker.stat().st_mtime_ns
    checkpoints.save(SmallState(4), step=3)
    checkpoints.wait()
    assert marker.stat().st_mtime_ns == before


def test_leftovers_of_a_killed_save_are_no_checkpoints_and_go(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000002")
    (tmp_path / "step-00000002" / "marker.json").rename(
        tmp_path / "step-00000002" / "marker.json.partial"
    )
    (tmp_path / "something-else").mkdir()
    again = checkpoints_in(tmp_path)
    assert saved_steps(tmp_path) == [1]
    assert (tmp_path / "something-else").is_dir()
    assert again.newest().step == 1  # type: ignore[union-attr]
    assert not again.skipped


def test_going_back_forgets_what_came_later(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path, keep_last=3)
    for step in (10, 20, 30):
        save(checkpoints, step, score=step / 100, best_step=step)
    checkpoints.load(checkpoints.at(10), SmallState(0))  # type: ignore[arg-type]
    assert saved_steps(tmp_path) == [10, 20, 30]
    # The same step again, with another state: not the one of the life before.
    checkpoints.save(SmallState(777), step=20, score=0.05, best_step=10)
    checkpoints.wait()
    assert saved_steps(tmp_path) == [10, 20]
    loaded = SmallState(0)
    checkpoints.load(checkpoints.newest(), loaded)  # type: ignore[arg-type]
    assert same(loaded.flat(), SmallState(777).flat())


def test_a_run_of_another_identity_is_told_every_difference(tmp_path: Path) -> None:
    save(checkpoints_in(tmp_path), 1)
    other = {"format": 1, "dataset": "d2", "model": {"levels": 3, "width": 64}, "tasks": ["a"]}
    checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(), other, plan=None)
    for ask in (checkpoints.newest, lambda: checkpoints.at(1)):
        with pytest.raises(CheckpointError) as error:
            ask()
        lines = str(error.value).splitlines()
        assert lines[1:-1] == [
            '  dataset: "d1" in the checkpoint, "d2" in this run',
            "  model.levels: 2 in the checkpoint, 3 in this run",
            '  tasks: absent in the checkpoint, ["a"] in this run',
        ]
        assert str(tmp_path / "step-00000001") in lines[0]
    assert saved_steps(tmp_path) == [1]


def test_an_unknown_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    save(checkpoints_in(tmp_path), 1)
    with mock.patch("pipeline.checkpoint.marker.VERSION", 3):
        save(checkpoints_in(tmp_path), 2)
    checkpoints = checkpoints_in(tmp_path, keep_last=1)
    with pytest.raises(CheckpointError, match="version 3, and this code knows version 2"):
        checkpoints.newest()
    assert checkpoints.at(1) is not None
    save(checkpoints, 3)
    assert saved_steps(tmp_path) == [2, 3]


def test_a_state_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    saved = checkpoints.newest()
    assert saved is not None
    larger = SmallState(1, rows=60)
    del larger.moments["tower.weight"]
    larger.model["tower.bias"] = torch.zeros(3)
    before = larger.flat()
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(saved, larger)
    text = str(error.value)
    assert "model.tower.bias is not in the checkpoint" in text
    assert "dense_optimizer.tower.weight has no place in this run" in text
    assert "[50, 4] in the checkpoint, torch.float32 [60, 4] in this run" in text
    assert same(larger.flat(), before)


def test_only_tensors_and_plain_trees_can_be_saved(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    state = SmallState(1)
    state.model["note"] = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"model\.note: no tensor"):
        checkpoints.save(state, step=1)
    state = SmallState(1)
    state.mine["callback"] = print
    with pytest.raises(TypeError, match="callback"):
        checkpoints.save(state, step=1)
    save(checkpoints, 1)
    assert checkpoints.newest() is not None


def test_too_little_room_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    usage = mock.Mock(free=20 << 20)
    with mock.patch("shutil.disk_usage", return_value=usage):
        checkpoints.save(SmallState(2, rows=1 << 20), step=2)
        with pytest.raises(CheckpointError, match=r"needs 65\.\d MiB .* the disk has 20\.0 MiB"):
            checkpoints.wait()
    assert saved_steps(tmp_path) == [1]
    save(checkpoints, 3)
    assert saved_steps(tmp_path) == [1, 3]


def test_a_write_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    checkpoints.save(SmallState(2, rows=100_000), step=2)
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file may not grow beyond this: the kernel refuses the write, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        checkpoints.save(SmallState(3, rows=100_000), step=3)
        # The next save is told, and has not begun.
        with pytest.raises(CheckpointError, match=r"step-00000003 .*tensors-00000.bin.*too large"):
            checkpoints.save(SmallState(4), step=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved_steps(tmp_path) == [1, 2]
    loaded = SmallState(0, rows=100_000)
    checkpoints.load(checkpoints.newest(), loaded)  # type: ignore[arg-type]
    assert same(loaded.flat(), SmallState(2, rows=100_000).flat())
    save(checkpoints, 4)
    assert saved_steps(tmp_path) == [2, 4]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    checkpoints = checkpoints_in(tmp_path / "file" / "checkpoints")
    checkpoints.save(SmallState(1), step=1)
    with pytest.raises(CheckpointError, match="Not a directory"):
        checkpoints.wait()
    checkpoints.close()


def test_weights_alone_averaged_where_there_are(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    average = torch.randn(3, 4)

    class State(SmallState):
        def tensors(self) -> dict[str, object]:
            return {
                "model": model.state_dict(),
                "average": {"weight": average, "steps": torch.tensor(3)},
                "dense_optimizer": self.moments,
            }

    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(State(1), step=1)
    checkpoints.wait()
    saved = checkpoints.newest()
    assert saved is not None
    for load in (
        lambda into: checkpoints.load_model(saved, into),
        lambda into: load_unsharded(into, saved.location),
    ):
        other = nn.Linear(4, 3)
        load(other)
        assert torch.equal(other.weight, average)
        assert torch.equal(other.bias, expected["bias"])
        with pytest.raises(CheckpointError, match="weight is"):
            load(nn.Linear(5, 3))
    (tmp_path / "step-00000001" / "tensors-00000.bin").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="has 5 bytes instead of"):
        load_unsharded(nn.Linear(4, 3), saved.location)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_unsharded(nn.Linear(4, 3), str(tmp_path))


def test_the_marker_lists_every_file(tmp_path: Path) -> None:
    save(checkpoints_in(tmp_path), 5, 0.25)
    folder = tmp_path / "step-00000005"
    marker = Marker.from_text((folder / "marker.json").read_text(), "here")
    listed = {record.name: record.size for record in marker.files}
    there = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert listed == {n: size for n, size in there.items() if n != "marker.json"}
    assert set(there) == {
        "index.json",
        "marker.json",
        "own-00000.safetensors",
        "shared.safetensors",
        "tensors-00000.bin",
    }
    assert json.loads((folder / "marker.json").read_text())["score"] == 0.25
