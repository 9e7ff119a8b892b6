"""A training that was stopped and taken up again ends as one that nobody touched, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from processes import run_processes
from resumed_runs import StopAt, saved_state, small_experiment, timeless, train_on, write_run

pytestmark = pytest.mark.slow

# Dropout, averages, clipping, a balancing method with a window of losses and one with optimizer
# state of its own, batch statistics, maps that collect ids for five steps.
VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {
        "model": {"expert_dropout": 0.2, "tower_dropout": 0.1},
        "dense_optimizer": {"kind": "adamw", "ema_decay": 0.9, "clip_norm": 0.05},
        "balance": {"kind": "dwa", "every": 6},
        "checkpoint": {"every_steps": 9, "keep_last": 1},
    },
    "adagrad": {
        "dense_optimizer": {"kind": "adagrad"},
        "balance": {"kind": "gradnorm"},
        "schedule": {"kind": "cosine", "warmup_steps": 4},
        "model": {"normalization": "batch"},
        "maps": {"user_id": "frequency", "item_tags": "recency"},
    },
}
# (step, phase): within a shuffle block, at an evaluation, at an epoch's end, when all is scored.
STOPS = [(4, "training step"), (13, "evaluating"), (17, "training step"), (33, "waiting"), (99, "")]


def run(rank: int, world_size: int, folder: str, variant: str) -> dict[str, Any]:
    from pipeline.config.load import parse_experiment

    root = Path(folder)
    experiment = parse_experiment(small_experiment(root / "data", **VARIANTS[variant]))
    untouched, heard = train_on(experiment, root / f"{variant}-untouched", rank, world_size)
    stopped = 0
    notes: list[str] = []
    for step, phase in STOPS:
        control = StopAt(step, phase) if phase else None
        result, resumed = train_on(experiment, root / f"{variant}-torn", rank, world_size, control)
        stopped += result is None
        notes += resumed.notes
    return {
        "results": [untouched, result],
        "postings": [timeless(heard.postings), timeless(resumed.postings)],
        "stopped": stopped,
        "notes": notes,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jobs.prepare import main as prepare
    from pipeline.config.load import parse_experiment

    folder = tmp_path_factory.mktemp("resume")
    data = folder / "data"
    assert prepare(["clicklog", "--rows", "4200", "--output", str(data)]) == 0
    plain = parse_experiment(small_experiment(data))
    for world_size in (1, 2, 3):
        write_run(folder / f"moved-{world_size}", plain)
    for variant, sections in VARIANTS.items():
        experiment = parse_experiment(small_experiment(data, **sections))
        for kind in ("untouched", "torn"):
            write_run(folder / f"{variant}-{kind}", experiment)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_resumed_is_untouched(folder: Path, variant: str) -> None:
    ranks = run_processes(run, 2, folder, str(folder), variant)
    for outcome in ranks:
        assert outcome["stopped"] == len(STOPS) - 1
        untouched, torn = outcome["results"]
        assert torn.splits == untouched.splits
        assert torn.history == untouched.history
        assert torn.best_step == untouched.best_step
        assert torn.rows_trained == untouched.rows_trained
        assert torn.gates == untouched.gates
        assert torn.steps == untouched.steps
    steps = ranks[0]["results"][0].steps
    first = saved_state(folder / f"{variant}-untouched", steps)
    second = saved_state(folder / f"{variant}-torn", steps)
    assert first.keys() == second.keys()
    for name, content in first.items():
        assert second[name] == content, name
    assert ranks[0]["postings"][0] == ranks[0]["postings"][1]
    assert [n.split(" of ")[0] for n in ranks[0]["notes"]] == [
        f"going on after step {step}" for step in (4, 13, 17, 33)
    ]


def test_another_number_of_workers_goes_on_with_the_same_rows(folder: Path) -> None:
    """Saved by 2 at step 17, within a shuffle block; gone on with on 1 and on 3."""
    untouched = run_processes(finish, 2, folder, str(folder), "moved-2")[0]
    for world_size in (1, 3):
        shutil.copytree(folder / "moved-2" / "kept", folder / f"moved-{world_size}" / "checkpoints")
        moved = run_processes(finish, world_size, folder, str(folder), f"moved-{world_size}")[0]
        assert moved.rows_trained == untouched.rows_trained == 2 * 4200
        assert moved.steps == untouched.steps
        assert moved.counters["rows"] == untouched.counters["rows"]
        for mine, theirs in zip(moved.history, untouched.history, strict=True):
            assert {**mine, "value": None} == {**theirs, "value": None}
            if mine["metric"] == "loss":
                assert mine["value"] == pytest.approx(theirs["value"], rel=2e-3), mine
        for task, metrics in untouched.splits["test"].items():
            assert moved.splits["test"][task]["auc"] == pytest.approx(metrics["auc"], abs=1e-3)


def finish(rank: int, world_size: int, folder: str, name: str) -> Any:
    """On 2 workers stops at step 17 and keeps a copy of what stands, then trains to the end."""
    from pipeline.config.load import parse_experiment

    run_folder = Path(folder) / name
    experiment = parse_experiment(small_experiment(Path(folder) / "data"))
    if world_size == 2:
        train_on(experiment, run_folder, rank, world_size, StopAt(17, "training step"))
        if rank == 0:
            shutil.copytree(run_folder / "checkpoints", run_folder / "kept")
    return train_on(experiment, run_folder, rank, world_size)[0]
