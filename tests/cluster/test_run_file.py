"""run.json: which run is taken up again, and what keeps one from it."""

from pathlib import Path

import pytest

from pipeline.cluster.run_file import (
    ResumeError,
    RunFile,
    Status,
    last_checkpoint,
    remove_run_folder,
    run_to_resume,
)


def write(storage: Path, run_id: str, began: str, status: Status = "running") -> RunFile:
    run = RunFile(run_id, "shop", {"train": {"seed": 1}}, status, began)
    run.save(str(storage / run_id))
    return run


def test_the_newest_unfinished_run_of_the_name(tmp_path: Path) -> None:
    assert run_to_resume(str(tmp_path / "absent"), "shop", None) is None
    write(tmp_path, "a", "2026-01-01", "stopped")
    newest = write(tmp_path, "b", "2026-01-03", "failed")
    write(tmp_path, "c", "2026-01-02")
    write(tmp_path, "d", "2026-01-04", "finished")
    (tmp_path / "catalogs").mkdir()
    (tmp_path / "mlflow.db").touch()
    assert run_to_resume(str(tmp_path), "shop", None) == newest
    assert run_to_resume(str(tmp_path), "other", None) is None
    named = run_to_resume(str(tmp_path), "shop", "a")
    assert named is not None
    assert (named.run_id, named.status) == ("a", "stopped")


def test_a_run_that_is_not_there_or_finished_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "d", "2026-01-04", "finished")
    with pytest.raises(ResumeError, match=r"--resume e: no such run .* d \(shop, finished\)"):
        run_to_resume(str(tmp_path), "shop", "e")
    with pytest.raises(ResumeError, match="--resume d: this run is finished"):
        run_to_resume(str(tmp_path), "shop", "d")


def test_a_changed_experiment_is_refused_with_the_difference(tmp_path: Path) -> None:
    run = write(tmp_path, "a", "2026-01-01")
    run.check_same({"train": {"seed": 1}})
    with pytest.raises(ResumeError) as caught:
        run.check_same({"train": {"seed": 2}})
    assert "train.seed: 1 in the checkpoint, 2 in this run" in str(caught.value)
    assert "Only workers, threads" in str(caught.value)


def test_the_last_checkpoint_is_the_last_with_a_marker(tmp_path: Path) -> None:
    assert last_checkpoint(str(tmp_path)) is None
    for step, marker in ((7, True), (14, True), (21, False)):
        folder = tmp_path / "checkpoints" / f"step-{step:08}"
        folder.mkdir(parents=True)
        if marker:
            (folder / "marker.json").touch()
    assert last_checkpoint(str(tmp_path)) == 14


def test_a_removed_run_is_gone(tmp_path: Path) -> None:
    write(tmp_path, "a", "2026-01-01")
    remove_run_folder(str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []
