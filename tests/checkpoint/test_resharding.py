"""Saved on one number of workers and one plan, loaded on another: row by row, state included."""

from typing import Any

import pytest
import torch
from processes import run_processes
from sharded_states import ROWS, State, checkpoints_of
from torch import Tensor

pytestmark = pytest.mark.slow


def save(folder: str, name: str, types: tuple[str, ...], steps: int = 3) -> dict[str, Tensor]:
    state = State(types, seed=3)
    state.train(0, steps)
    checkpoints = checkpoints_of(folder, name, state)
    checkpoints.save(state, step=steps)
    whole = state.whole()
    state.train(steps, 2)  # while it is being written
    checkpoints.close()
    return whole


def load(folder: str, name: str, types: tuple[str, ...]) -> dict[str, Tensor] | str:
    """What is there after loading into a state with other numbers, or why it is refused."""
    from pipeline.checkpoint.errors import CheckpointError

    state = State(types, seed=4)
    state.train(0, 1)
    checkpoints = checkpoints_of(folder, name, state)
    saved = checkpoints.newest()
    assert saved is not None, checkpoints.skipped
    try:
        checkpoints.load(saved, state)
    except CheckpointError as error:
        return str(error)
    return state.whole()


TABLE, ROW, COLUMN, COPIES = ("table_wise",), ("row_wise",), ("column_wise",), ("data_parallel",)


def on_two(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    return {
        "tables": save(folder, "tables", TABLE),
        "columns": save(folder, "columns", COLUMN),
        "copies": save(folder, "copies", COPIES),
    }


def on_one(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    from torch import nn

    found: dict[str, Any] = {
        "tables": load(folder, "tables", ROW),
        "columns": load(folder, "columns", COLUMN),
        "copies": load(folder, "copies", COPIES),
        "columns as tables": load(folder, "columns", TABLE),
        "copies as tables": load(folder, "copies", TABLE),
        "tables as columns": load(folder, "tables", COLUMN),
        "rows": save(folder, "rows", ROW, steps=4),
    }
    state = State(COLUMN, seed=4)
    checkpoints = checkpoints_of(folder, "copies", state)
    checkpoints.load_model(checkpoints.newest(), state.dmp)
    found["weights of copies"] = state.whole()
    assert isinstance(state.dmp, nn.Module)
    return found


def on_three(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    return {
        "tables": load(folder, "tables", ROW),
        "rows": load(folder, "rows", TABLE),
        "columns": load(folder, "columns", COLUMN),
        "copies": load(folder, "copies", COPIES),
    }


def on_two_again(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    return {"rows": load(folder, "rows", ROW), "tables": load(folder, "tables", TABLE)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("resharding")
    return {
        function.__name__: run_processes(function, workers, folder, str(folder))
        for function, workers in ((on_two, 2), (on_one, 1), (on_three, 3), (on_two_again, 2))
    }


def rows_of(value: Tensor) -> Tensor:
    return value.reshape(value.size(0), -1) if value.dim() else value.reshape(1, 1)


@pytest.mark.parametrize(
    ("name", "saved_on", "loaded_on"),
    [
        ("tables", "on_two", "on_one"),
        ("tables", "on_two", "on_three"),
        ("tables", "on_two", "on_two_again"),
        ("rows", "on_one", "on_three"),
        ("rows", "on_one", "on_two_again"),
        ("columns", "on_two", "on_one"),
        ("columns", "on_two", "on_three"),
        ("copies", "on_two", "on_one"),
        ("copies", "on_two", "on_three"),
    ],
)
def test_every_row_and_its_state_arrive(
    runs: Any, name: str, saved_on: str, loaded_on: str
) -> None:
    expected = runs[saved_on][0][name]
    got, *copies = (run[name] for run in runs[loaded_on])
    assert isinstance(got, dict), got
    assert got.keys() == expected.keys()
    weights = [n for n in expected if n.endswith(".weight") and ".embedding_bags." in n]
    states = [n for n in expected if "momentum" in n or n.startswith("copied_optimizer")]
    assert len(weights) >= len(ROWS)
    assert len(states) >= len(ROWS)
    for table in states:
        assert expected[table].count_nonzero(), f"{table} never moved"
    for table, value in expected.items():
        assert got[table].shape == value.shape, table
        by_row = zip(rows_of(value), rows_of(got[table]), strict=True)
        for row, (before, after) in enumerate(by_row):
            assert torch.equal(before, after), f"{table}, row {row}"
    dense = [n for n in expected if n.startswith("dense_optimizer")]
    assert len(dense) > 10
    for copy in copies:
        for table in dense:
            assert torch.equal(copy[table], expected[table]), table


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("columns as tables", ["'t0' was saved column_wise and is now table_wise", "columns"]),
        ("copies as tables", ["'t3' was saved data_parallel and is now table_wise", "copied"]),
        (
            "tables as columns",
            ["'t1' was saved table_wise and is now column_wise", "types: [table_wise]"],
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused_with_the_reason(
    runs: Any, name: str, words: list[str]
) -> None:
    refusal = runs["on_one"][0][name]
    assert isinstance(refusal, str)
    for word in words:
        assert word in refusal


def test_weights_alone_load_under_any_plan(runs: Any) -> None:
    expected, got = runs["on_two"][0]["copies"], runs["on_one"][0]["weights of copies"]
    names = [name for name in expected if name.startswith("model.")]
    assert len(names) > len(ROWS)
    for name in names:
        assert torch.equal(got[name], expected[name]), name
