"""Maps of ids: a run that comes back between two changes of the map goes on as if it never left."""

from typing import Any

import pytest
import torch
from processes import run_processes
from sharded_states import State, checkpoints_of
from torch import Tensor

pytestmark = pytest.mark.slow

# The map changes after every fourth step: two steps are pending at the save.
SAVED, END = 6, 15
MAPPED = ("mapped",)


def resumed(folder: str, forgetful: bool = False) -> dict[str, Tensor]:
    state = State(MAPPED, seed=4)
    state.train(0, 3)
    if forgetful:
        state.load_plain = lambda shared, own: None  # type: ignore[method-assign]
    checkpoints = checkpoints_of(folder, "mapped", state)
    checkpoints.load(checkpoints.newest(), state)
    state.train(SAVED, END - SAVED)
    return state.whole()


def on_two(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    state = State(MAPPED, seed=3)
    state.train(0, SAVED)
    checkpoints = checkpoints_of(folder, "mapped", state)
    checkpoints.save(state, step=SAVED)
    state.train(SAVED, END - SAVED)
    undisturbed = state.whole()
    checkpoints.close()
    return {"undisturbed": undisturbed, "resumed": resumed(folder)}


def on_one(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    return {"resumed": resumed(folder), "forgetful": resumed(folder, forgetful=True)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("managed")
    return {
        2: run_processes(on_two, 2, folder, str(folder))[0],
        1: run_processes(on_one, 1, folder, str(folder))[0],
    }


def maps_of(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in whole.items() if "managed_collision" in name}


def test_the_same_workers_end_with_the_same_bits(runs: Any) -> None:
    undisturbed, got = runs[2]["undisturbed"], runs[2]["resumed"]
    assert got.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        assert torch.equal(got[name], value), name


def test_fewer_workers_end_with_the_same_map(runs: Any) -> None:
    expected, got = maps_of(runs[2]["undisturbed"]), maps_of(runs[1]["resumed"])
    assert any(name.endswith("slot_ids") for name in expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def test_ids_that_were_pending_matter(runs: Any) -> None:
    expected, got = maps_of(runs[2]["undisturbed"]), maps_of(runs[1]["forgetful"])
    assert any(not torch.equal(got[name], value) for name, value in expected.items())
