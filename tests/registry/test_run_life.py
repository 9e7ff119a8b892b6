"""What run.json says however a run ends, and what is said when it is stopped."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.run_file import RunFile
from pipeline.cluster.stopping import RunStopped
from pipeline.config.failures import FailuresConfig
from pipeline.registry.run_life import RunLife


class FakeTracker:
    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.status = ""

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def finish(self, status: str) -> None:
        self.status = status


def life_of(folder: Path, begun: bool = True) -> tuple[RunLife, FakeTracker]:
    experiment: Any = SimpleNamespace(failures=FailuresConfig())
    life, tracker = RunLife(experiment), FakeTracker()
    if begun:
        run = RunFile.new("abc", "shop", {})
        life.begin(tracker, run, str(folder))  # type: ignore[arg-type]
    return life, tracker


def status(folder: Path) -> str:
    text: str = json.loads((folder / "run.json").read_text())["status"]
    return text


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError, "failed"), (KeyboardInterrupt, "stopped"), (SystemExit, "stopped")],
)
def test_how_a_run_ended(tmp_path: Path, error: type[BaseException], expected: str) -> None:
    life, _ = life_of(tmp_path)
    assert status(tmp_path) == "running"
    with pytest.raises(error), life:
        raise error
    assert status(tmp_path) == expected
    with life:
        life.end("finished")
    assert status(tmp_path) == "finished"


def test_a_stop_names_the_checkpoint_that_stands(tmp_path: Path) -> None:
    life, tracker = life_of(tmp_path)
    life.check()
    life.signals.requested.set()
    with pytest.raises(RunStopped, match="before the first checkpoint; --resume abc") as caught:
        life.check()
    assert not caught.value.saved
    marker = tmp_path / "checkpoints" / "step-00000012" / "marker.json"
    marker.parent.mkdir(parents=True)
    marker.touch()
    with pytest.raises(RunStopped, match="step 12 stands: go on with --resume abc") as caught:
        life.check()
    assert caught.value.saved
    assert tracker.tags == {"stopped.step": "12"}


def test_a_stop_before_the_run_began(tmp_path: Path) -> None:
    life, _ = life_of(tmp_path, begun=False)
    life.signals.requested.set()
    with pytest.raises(RunStopped, match="before the run began"), life:
        life.check()
    assert list(tmp_path.iterdir()) == []


def test_the_last_words_end_the_run_in_mlflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    life, tracker = life_of(tmp_path)
    assert life._last_words() == 130
    assert tracker.status == "KILLED"
    assert "not stopped in time" in capsys.readouterr().err
