"""kill -9 of a process that saves, at random moments: the checkpoint before it stays loadable."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

KILLS = 5
# Some 3 MB: most of the time a save is on its way.
ROWS = 100_000

pytestmark = pytest.mark.slow


def save_for_ever(folder: str, told: Any) -> None:
    """Goes on from the newest checkpoint, saves after each step, and tells what it saw."""
    from saved_states import SmallState, checkpoints_in, group_of_one, same

    torch.set_num_threads(1)
    with group_of_one(Path(folder) / f"group-{os.getpid()}"):
        checkpoints = checkpoints_in(Path(folder) / "checkpoints")
        saved = checkpoints.newest()
        step = 0
        if saved is not None:
            state = SmallState(0, ROWS)
            checkpoints.load(saved, state)
            assert same(state.flat(), SmallState(saved.step, ROWS).flat()), saved
            step = saved.step
        told.send(("found", step, list(checkpoints.skipped)))
        while True:
            step += 1
            checkpoints.save(SmallState(step, ROWS), step=step)
            # The save before this one was waited for: it is committed.
            told.send(("committed", step - 1, []))


def test_the_newest_committed_checkpoint_survives_any_kill(tmp_path: Path) -> None:
    draw = random.Random(6)
    context = multiprocessing.get_context("spawn")
    committed = moments = 0
    for _ in range(KILLS):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(str(tmp_path), sender))
        process.start()
        sender.close()
        try:
            _, found, skipped = receiver.recv()
            assert found >= committed, "a committed checkpoint is lost"
            assert not skipped
            while committed < found + 1:
                committed = receiver.recv()[1]
            time.sleep(draw.random() * 0.2)
        finally:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        folders = list((tmp_path / "checkpoints").glob("step-*"))
        moments += any(not (folder / "marker.json").exists() for folder in folders)
        try:
            while True:
                committed = max(committed, receiver.recv()[1])
        except EOFError:
            pass
    assert committed >= KILLS
    assert moments, "no kill came while a checkpoint was being written"
