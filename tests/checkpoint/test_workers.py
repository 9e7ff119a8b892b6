"""Two workers: what goes wrong on one is raised on both, and neither waits for the other."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from saved_states import SmallState, checkpoints_in, same

pytestmark = pytest.mark.slow

ROWS = 100_000


class CutState(SmallState):
    """Half of a table on each worker, the rest copied; an own tree by rank."""

    def tensors(self) -> dict[str, Any]:
        import torch.distributed as dist
        from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

        rank, count = dist.get_rank(), dist.get_world_size()
        whole = self.model["tables.user"]
        height = whole.size(0) // count
        mine = whole[rank * height : (rank + 1) * height]
        place = Shard.from_tensor_and_offsets(mine, [rank * height, 0], rank)
        cut = init_from_local_shards([place], *whole.shape)
        return {"model": {**self.model, "tables.user": cut}}

    def load_tensors(self, tree: dict[str, Any]) -> None: ...


def told(action: Any) -> str:
    from pipeline.checkpoint.errors import CheckpointError

    try:
        action()
    except CheckpointError as error:
        return str(error)
    return "nothing"


def work(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    import torch.distributed as dist

    checkpoints = checkpoints_in(folder)
    state = CutState(1, ROWS)
    checkpoints.save(state, step=1)
    checkpoints.wait()
    found: dict[str, Any] = {}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    checkpoints.save(CutState(2, ROWS), step=2)
    found["full disk"] = told(checkpoints.wait)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()
    found["folders"] = sorted(path.name for path in Path(folder).iterdir())

    checkpoints.save(CutState(3, ROWS), step=3)
    checkpoints.wait()
    dist.barrier()
    if rank == 0:
        damaged = Path(folder) / "step-00000003" / "tensors-00001.bin"
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 4
        damaged.write_bytes(content)
    dist.barrier()
    newest = checkpoints.newest()
    assert newest is not None
    found["newest"], found["skipped"] = newest.step, checkpoints.skipped
    loaded = CutState(9, ROWS)
    if rank == 1:
        loaded.model["tower.weight"] = torch.zeros(7, 6)
    found["misfit"] = told(lambda: checkpoints.load(newest, loaded))
    loaded = CutState(9, ROWS)
    checkpoints.load(newest, loaded)
    height = ROWS // world_size
    mine = slice(rank * height, (rank + 1) * height)
    expected, got = state.model["tables.user"], loaded.model["tables.user"]
    assert torch.equal(got[mine], expected[mine])
    assert same({"w": loaded.model["tower.weight"]}, {"w": state.model["tower.weight"]})
    found["own"] = loaded.owns
    # Nobody listens any more: what is asked for last must not hang either.
    checkpoints.close()
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    return run_processes(work, 2, folder, str(folder / "checkpoints"))


def test_a_disk_that_is_full_for_one_is_told_to_both(results: Any) -> None:
    for result in results:
        assert "saving" in result["full disk"]
        assert "tensors-00001.bin" in result["full disk"]
        assert "File too large" in result["full disk"]
        assert "(worker 1)" in result["full disk"]
        assert result["folders"] == ["step-00000001"]


def test_both_pass_over_what_one_of_them_found_damaged(results: Any) -> None:
    for result in results:
        assert result["newest"] == 1
        (reason,) = result["skipped"]
        assert "step-00000003: tensors-00001.bin is damaged (checksum" in reason


def test_a_misfit_of_one_is_told_to_both(results: Any) -> None:
    for result in results:
        assert "model.tower.weight is torch.float32 [7, 5] in the checkpoint" in result["misfit"]


def test_each_gets_the_own_trees_of_all(results: Any) -> None:
    for result in results:
        assert result["own"] == [{"rank": 0, "sum": 1 / 3}, {"rank": 1, "sum": 1 / 3}]
