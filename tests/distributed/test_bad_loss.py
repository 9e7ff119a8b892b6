"""A NaN among one worker's numbers: seen by all before it moves anything; stopped at or skipped."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from resumed_runs import small_experiment, write_run

from pipeline.training.trainer import Trainer

pytestmark = pytest.mark.slow

NORMALISED = {"model": {"normalization": "batch"}, "dense_optimizer": {"ema_decay": 0.9}}


class PoisonedTrainer(Trainer):
    """Worker 1 gets a NaN in some steps (from 1)."""

    poisoned: tuple[int, ...] = ()

    def batches(self, epoch: int) -> Iterator[Any]:
        self.moved: list[list[str]] = []
        self.before: dict[str, bytes] | None = None
        first = epoch * self.steps_per_epoch + 1
        for step, batch in enumerate(super().batches(epoch), first):
            if self.before is not None:
                self.moved.append(changes(self.before, self.snapshot()))
            self.before = None
            if step in self.poisoned:
                self.before = self.snapshot()
                if self.context.rank == 1:
                    batch = replace(batch, dense_BN=batch.dense_BN.clone().fill_(float("nan")))
            yield batch

    def snapshot(self) -> dict[str, bytes]:
        """The bytes of all that is trained on this worker."""
        tree = {
            "parameters": dict(self.model.named_parameters()),
            "buffers": dict(self.model.named_buffers()),
            "optimizers": self.optimizers.tensors(),
            "losses": self.joint_loss.own_state(),
        }
        leaves, _ = torch.utils._pytree.tree_flatten_with_path(tree)
        return {
            torch.utils._pytree.keystr(path): leaf.detach().numpy().tobytes()
            for path, leaf in leaves
            if type(leaf) in (torch.Tensor, torch.nn.Parameter)
        }


def changes(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


def train(rank: int, world_size: int, folder: str, name: str, poisoned: Any) -> dict[str, Any]:
    from pipeline.config import load_experiment
    from pipeline.training.errors import TrainingError
    from pipeline.training.report import SilentReporter
    from pipeline.training.worker_context import WorkerContext

    experiment = load_experiment(Path(folder) / name / "experiment.yaml")
    context = WorkerContext(rank, world_size, world_size, torch.device("cpu"), threads=1)
    trainer = PoisonedTrainer(experiment, context, str(Path(folder) / name), SilentReporter())
    trainer.poisoned = poisoned
    try:
        result = trainer.run()
        return {"result": result, "moved": trainer.moved, "error": None}
    except TrainingError as error:
        assert trainer.before is not None
        moved = [*trainer.moved, changes(trainer.before, trainer.snapshot())]
        return {"error": str(error), "moved": moved}
    finally:
        trainer.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jobs.prepare import main as prepare

    folder = tmp_path_factory.mktemp("bad-loss") / "data"
    assert prepare(["clicklog", "--rows", "2000", "--output", str(folder)]) == 0
    return folder


def write(dataset: Path, name: str, **sections: Any) -> None:
    import yaml

    from pipeline.config.load import parse_experiment

    tree = small_experiment(dataset, train={"epochs": 1}, **sections)
    folder = dataset.parent / name
    write_run(folder, parse_experiment(tree))
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))


def test_the_run_stops_before_anything_moves(dataset: Path) -> None:
    write(dataset, "stop", checkpoint={"every_steps": 2})
    folder = dataset.parent
    outcomes = run_processes(train, 2, folder, str(folder), "stop", (6,))
    kept = folder / "stop" / "bad_batch" / "step-00000006"
    for outcome in outcomes:
        assert outcome["moved"] == [[]]
        message = outcome["error"]
        assert message.startswith("step 6: the loss of task 'click' is nan, the loss of task ")
        assert "from rows of worker 1. No weight has moved by it" in message
        assert "the checkpoint of step 4 stands" in message
        assert f"kept in {kept}" in message
        assert "failures.bad_loss=skip_batch" in message
    about = json.loads((kept / "rank-1.json").read_text())
    assert about["cursor"]["step"] == 6
    assert about["tasks_not_finite_here"] == ["click", "convert", "like"]
    assert all(groups for groups in about["row_groups"].values())
    assert (kept / "rank-0.safetensors").is_file()


def test_bad_batches_are_skipped_and_counted(dataset: Path) -> None:
    failures = {"bad_loss": "skip_batch", "max_skipped_batches": 2}
    write(dataset, "skip", failures=failures, **NORMALISED)
    folder = dataset.parent
    outcomes = run_processes(train, 2, folder, str(folder), "skip", (1, 2))
    for outcome in outcomes:
        assert outcome["moved"] == [[], []]
        result = outcome["result"]
        assert result.counters["skipped_batches"] == 2
        assert result.rows_trained == 2000 - 2 * 128
        assert 0.3 < result.splits["test"]["click"]["auc"] < 1.0


def test_too_many_bad_batches_stop_the_run(dataset: Path) -> None:
    failures = {"bad_loss": "skip_batch", "max_skipped_batches": 1}
    write(dataset, "limit", failures=failures, balance={"kind": "dwa", "every": 5})
    folder = dataset.parent
    outcomes = run_processes(train, 2, folder, str(folder), "limit", (4, 9))
    for outcome in outcomes:
        assert outcome["moved"] == [[], []]
        assert "1 batches were skipped before it, as many as failures allow" in outcome["error"]
        assert "there is no checkpoint yet" in outcome["error"]
