"""Sharded models that start from a checkpoint or a version: every row where its value is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from sharded_states import put_together
from torch import Tensor
from warm_models import (
    fresh_state,
    ids,
    numbered_ids,
    table_weight,
    transforms_of,
    version_source,
    warm_experiment,
)

pytestmark = pytest.mark.slow

TYPES = ("table_wise", "row_wise")
THERE = [f"v{i}" for i in range(50)]
HERE = [f"v{i}" for i in range(70, 20, -1)]
OLD = transforms_of(
    ids("user", THERE), numbered_ids("city", "identity", 20), numbered_ids("item", "hash", 30)
)
NEW = transforms_of(
    numbered_ids("city", "identity", 33), ids("user", HERE), numbered_ids("item", "hash", 31)
)
MAPPED = transforms_of(ids("user", THERE), numbered_ids("item", "zero_collision", 8, buckets=2))


class Notebook:
    """Keeps what is written to MLflow."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.files: dict[str, Any] = {}

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log_dict(self, tree: dict[str, Any], file: str) -> None:
        self.files[file] = tree


def sharded(experiment: Any, transforms: Any, kind: str, seed: int) -> tuple[Any, Any]:
    import torch.distributed as dist

    from pipeline.config.optimizers import TableOptimizerConfig
    from pipeline.config.sharding import ShardingConfig
    from pipeline.model import build_ranker
    from pipeline.training.sharding import shard_ranker

    torch.manual_seed(seed)
    return shard_ranker(
        build_ranker(experiment, transforms, device="meta"),
        sharding=ShardingConfig(types=(kind,)),
        optimizer=TableOptimizerConfig(),
        batch_size=16,
        device=torch.device("cpu"),
        local_world_size=dist.get_world_size(),
        seed=seed,
    )


class _State:
    """The weights alone, as a training state."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def tensors(self) -> dict[str, Any]:
        return {"model": self._model.state_dict()}

    def load_tensors(self, tree: dict[str, Any]) -> None: ...

    def shared(self) -> dict[str, Any]:
        return {}

    def own(self) -> dict[str, Any]:
        return {}

    def load_plain(self, shared: dict[str, Any], own: list[dict[str, Any]]) -> None: ...


def save_run(folder: Path, experiment: Any, transforms: Any, model: Any, plan: Any) -> None:
    """A run folder with one checkpoint."""
    from pipeline.checkpoint.checkpoints import Checkpoints
    from pipeline.config.checkpoint import CheckpointConfig
    from pipeline.training.identity import run_identity

    location = str(folder / "checkpoints")
    identity = run_identity(experiment, "digest")
    checkpoints = Checkpoints(location, CheckpointConfig(), identity, plan=plan.to_tree())
    checkpoints.save(_State(model), step=7, score=0.5, best_step=7)
    checkpoints.wait()
    checkpoints.close()
    transforms.save(folder / "transforms")


def started(
    experiment: Any, transforms: Any, kind: str, source: str, folder: Path
) -> dict[str, Any]:
    """A new model before and after, and what was told."""
    import torch.distributed as dist

    from pipeline.registry.init_source import Beginning
    from pipeline.training.warm_start import warm_start

    model, _ = sharded(experiment, transforms, kind, seed=2)
    before = put_together(model.state_dict())
    lines: list[str] = []
    notebook = Notebook()
    if dist.get_rank() == 0:
        beginning = Beginning(experiment, source, transforms, None, lines.append)
        beginning.begin(notebook, str(folder))  # type: ignore[arg-type]
    dist.barrier()
    said = warm_start(model, experiment, transforms, str(folder))
    after = put_together(model.state_dict())
    return {"before": before, "after": after, "said": said, "lines": lines} | vars(notebook)


def work(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    from pipeline.training import warm_start

    warm_start.BLOCK_BYTES = 100  # a few rows: every path of a large table
    root = Path(folder) / str(world_size)
    experiment = warm_experiment(storage={"path": str(root)})
    model, plan = sharded(experiment, OLD, "row_wise", seed=1)
    source = put_together(model.state_dict())
    save_run(root / "source", experiment, OLD, model, plan)
    found: dict[str, Any] = {"source": source}
    for kind in TYPES:
        found[kind] = started(experiment, NEW, kind, "source", root / f"from-run-{kind}")
    place = str(root / "source/checkpoints/step-00000007")
    found["mapped"] = maps(root, experiment)
    if world_size == 2:
        import torch.distributed as dist

        from pipeline.checkpoint.errors import CheckpointError

        version = fresh_state(experiment, OLD, seed=5)
        if rank == 0:
            saved = version_source(root / "version", experiment, OLD, version, "int8")
            saved.save(str(root / "from-version"), experiment.init)
        dist.barrier()
        target, _ = sharded(experiment, NEW, "row_wise", seed=2)
        warm_start.warm_start(target, experiment, NEW, str(root / "from-version"))
        found["version"] = (version, put_together(target.state_dict()))
        dist.barrier()
        if rank == 0:
            path = Path(place) / "tensors-00000.bin"
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        dist.barrier()
        target, _ = sharded(experiment, NEW, "row_wise", seed=2)
        try:
            warm_start.warm_start(target, experiment, NEW, str(root / "from-run-row_wise"))
        except CheckpointError as error:
            found["damaged"] = str(error)
    return found


def maps(root: Path, experiment: Any) -> dict[str, Any]:
    """A table whose rows belong to ids by a map."""
    from ple.managed_ids import FREE

    model, plan = sharded(experiment, MAPPED, "row_wise", seed=1)
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith(("item.slot_ids", "item.counts", "embedding_bags.item.weight")):
            for shard in value.local_shards():
                first, rows = shard.metadata.shard_offsets[0], len(shard.tensor)
                for row in range(first, first + rows):
                    # Rows 0 to 3 are bucket 0, of even ids, and rows 4 to 7 bucket 1, of odd ones.
                    id_ = FREE if row % 4 == 3 else 2 * (row % 4) + row // 4 + 10
                    number = id_ if name.endswith("slot_ids") else row + 1
                    shard.tensor[row - first] = number
    model.load_state_dict(state)
    save_run(root / "mapped", experiment, MAPPED, model, plan)
    return started(experiment, MAPPED, "row_wise", "mapped", root / "from-mapped") | {
        "source": put_together(model.state_dict())
    }


@pytest.fixture(scope="module", params=[1, 2])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("warm")
    return run_processes(work, request.param, folder, str(folder))


def expected_rows(source: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tables by hand."""
    user, city = table_weight(fresh, "user").clone(), table_weight(fresh, "city").clone()
    old = table_weight(source, "user")
    user[:2] = old[:2]
    for row, value in enumerate(HERE, start=2):
        if value in THERE:
            user[row] = old[2 + THERE.index(value)]
    city[:20] = table_weight(source, "city")
    return {"user": user, "city": city, "item": table_weight(fresh, "item")}


@pytest.mark.parametrize("kind", TYPES)
def test_rows_and_columns_from_a_checkpoint(done: Any, kind: str) -> None:
    for rank in done:
        source, got = rank["source"], rank[kind]
        for name, expected in expected_rows(source, got["before"]).items():
            assert torch.equal(table_weight(got["after"], name), expected), name
        name = "extraction.levels.0.experts.shared.weights.0"
        # There user, city, item; here city, user, item: four columns each.
        order = [4, 5, 6, 7, 0, 1, 2, 3, *range(8, 16)]
        assert torch.equal(got["after"][name], source[name][:, :, order])
        for name in (
            "towers.towers.1.hidden.0.weight",
            "extraction.levels.0.experts.task_0.biases.1",
        ):
            assert torch.equal(got["after"][name], source[name])


def test_the_report_and_the_tag(done: Any) -> None:
    chief = done[0]["row_wise"]
    label = chief["tags"]["init.from"]
    assert label.endswith("source/checkpoints/step-00000007")
    assert chief["files"]["init.json"]["from"] == label
    parts = {part["part"]: part["status"] for part in chief["files"]["init.json"]["parts"]}
    assert parts["table user"] == parts["table city"] == "resized"
    assert parts["table item"] == "fresh"
    assert parts["tower of click"] == "taken"
    assert chief["said"] == (
        f"started from {label}: 7 parts taken, 2 resized, 1 fresh; optimizers start anew"
    )
    assert chief["lines"][0] == f"starting from {label}:"
    assert "  resized: table city (by number, 20 of 33 rows)" in chief["lines"]


def test_a_map_of_ids_comes_with_counts_and_rows(done: Any) -> None:
    for rank in done:
        got = rank["mapped"]
        names = [n for n in got["source"] if n.endswith(("slot_ids", "slot_rows", "counts"))]
        names += [n for n in got["source"] if n.endswith("embedding_bags.item.weight")]
        assert len(names) == 4
        for name in names:
            assert torch.equal(got["after"][name], got["source"][name]), name
            assert name.endswith("slot_rows") or not torch.equal(
                got["before"][name], got["source"][name]
            )


def test_a_version_and_a_damaged_checkpoint(done: Any) -> None:
    if len(done) == 1:
        return
    for rank in done:
        source, got = rank["version"]
        old, new = table_weight(source, "user"), table_weight(got, "user")
        # A table of few rows stays float32 in every precision.
        assert torch.equal(new[2 + HERE.index("v30")], old[2 + THERE.index("v30")])
        assert "tensors-00000.bin is damaged" in rank["damaged"]
