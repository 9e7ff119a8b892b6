"""Starts a sharded model from the weights of another one.

Every worker reads the source's tables block by block and keeps the rows of its own shards; no
worker ever holds a whole large table of the source. What is not taken stays as it was initialised,
and optimizers start anew.

Legend: R rows of a table, W their width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

import ple
from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.workers import Workers
from pipeline.config import Experiment
from pipeline.data.transforms import FeatureTransforms
from pipeline.training.warm_start_plan import InitPlan, TableCopy, TensorCopy
from pipeline.training.warm_start_source import saved_source
from pipeline.training.warm_start_weights import BLOCK_BYTES, MapState, SourceWeights


def warm_start(
    model: nn.Module, experiment: Experiment, transforms: FeatureTransforms, run_folder: str
) -> str | None:
    """Fills a model from the source in its run folder; every worker must call it.

    Args:
        model: of the experiment, sharded or not, freshly initialised.
        experiment: of the run.
        transforms: of its features.
        run_folder: holds ``init``, if the run starts from a source.

    Returns:
        A line that says what was done; None = the run starts fresh.

    Raises:
        CheckpointError: on all workers: the source is damaged, or gone.
    """
    workers = Workers()
    label, ready = "another model", []

    def prepare() -> bool:
        nonlocal label
        found = saved_source(run_folder)
        if found is None:
            return False
        source, init = found
        label = source.label
        weights = source.weights(experiment)
        faults = weights.faults(workers.rank, workers.count)
        if faults:
            raise CheckpointError(f"{label}: {', '.join(faults)}; start from another one")
        plan = source.plan(experiment.model_copy(update={"init": init}), transforms)
        ready.append((plan, weights))
        return True

    begun = workers.from_all("reading the source of --init-from", prepare)
    if not all(begun):
        assert not any(begun), begun
        return None
    plan, weights = ready[0]
    state = model.state_dict()
    workers.from_all(f"starting from {label}", lambda: fill(state, plan, weights))
    model.load_state_dict(state)
    counts = [sum(o.status == s for o in plan.outcomes) for s in ("taken", "resized", "fresh")]
    return (
        f"started from {label}: {counts[0]} parts taken, {counts[1]} resized, {counts[2]} fresh; "
        "optimizers start anew"
    )


@torch.no_grad()
def fill(state: dict[str, Tensor], plan: InitPlan, weights: SourceWeights) -> None:
    """Writes what the plan takes into a model's state_dict, in place; no collective calls.

    Raises:
        CheckpointError, OSError: the source cannot be read.
    """
    for outcome in plan.outcomes:
        for copy in outcome.copies:
            _fill_dense(state[copy.name], copy, weights.dense(copy.source))
        if outcome.table is not None:
            _fill_table(state, outcome.table, weights)


def _fill_dense(target: Tensor, copy: TensorCopy, source: Tensor) -> None:
    own = [np.flatnonzero(picks >= 0) for picks in copy.picks]
    theirs = [picks[kept] for picks, kept in zip(copy.picks, own, strict=True)]
    values = source[tuple(map(torch.from_numpy, np.ix_(*theirs)))]
    device = target.device
    target[tuple(torch.from_numpy(n).to(device) for n in np.ix_(*own))] = values.to(target)


def _fill_table(state: dict[str, Tensor], copy: TableCopy, weights: SourceWeights) -> None:
    for first_row, first_column, part_RW in _shards(_table(state, copy.table)):
        columns = copy.columns[first_column : first_column + part_RW.shape[1]]
        own = np.flatnonzero(columns >= 0)
        if own.size:
            _fill_rows(part_RW, first_row, own, columns[own], copy, weights)
    if copy.table.map is not None:
        _fill_map(state, copy, weights.map(copy.source))


def _fill_rows(
    part_RW: Tensor,
    first_row: int,
    own: np.ndarray,
    theirs: np.ndarray,
    copy: TableCopy,
    weights: SourceWeights,
) -> None:
    """Fills columns of a shard, by one walk over the source's rows that it needs."""
    width = copy.source.dim * copy.source.slices
    block = max(1, BLOCK_BYTES // (4 * width))
    theirs_W = torch.from_numpy(theirs)
    own_W = torch.from_numpy(own).to(part_RW.device)
    # Equal row numbers are worked out piece by piece; a map of rows is in memory already, and may
    # lead anywhere: walked in the source's order, every block is read once.
    step = block if copy.rows.source is None else max(1, len(part_RW))
    for top in range(0, len(part_RW), step):
        bottom = min(top + step, len(part_RW))
        source_R = copy.rows.between(first_row + top, first_row + bottom)
        for start, stop, rows, sources in _blocks(source_R, block):
            read_RW = weights.rows(copy.source, start, stop)
            values_RW = read_RW[torch.from_numpy(sources - start)][:, theirs_W]
            rows_R = torch.from_numpy(rows + top).to(part_RW.device)
            part_RW[rows_R[:, None], own_W] = values_RW.to(part_RW)


def _blocks(source_R: np.ndarray, block: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Blocks of the source in order: first row, end, rows that start from it, and from which."""
    rows = np.flatnonzero(source_R >= 0)
    rows = rows[np.argsort(source_R[rows], kind="stable")]
    sources = source_R[rows]
    done = 0
    while done < len(rows):
        start = int(sources[done])
        end = int(np.searchsorted(sources, start + block))
        yield start, int(sources[end - 1]) + 1, rows[done:end], sources[done:end]
        done = end


def _fill_map(state: dict[str, Tensor], copy: TableCopy, map_: MapState) -> None:
    """Ids keep their rows; the steps at which they were seen belong to the run before."""
    from ple.managed_ids import FREE  # TorchRec: workers have it loaded

    held_R = (map_.ids_R != FREE).to(torch.int64)
    values = {"slot_ids": map_.ids_R, "slot_rows": map_.rows_R, "last_access_iter": 0 * held_R}
    values["counts"] = held_R if map_.counts_R is None else map_.counts_R
    for name, value_R in values.items():
        place = f"._managed_collision_modules.{copy.table.name}.{name}"
        for key in state:
            if key.endswith(place):
                for first, _, part_R in _shards(state[key]):
                    part_R.copy_(value_R[first : first + len(part_R)])


def _table(state: dict[str, Tensor], table: ple.FeatureTable) -> Tensor:
    last = f".embedding_bags.{table.name}.weight"
    return next(v for n, v in state.items() if n.startswith("embeddings.") and n.endswith(last))


def _shards(value: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """This worker's parts of a tensor: first row, first column, numbers."""
    if not isinstance(value, ShardedTensor):
        yield 0, 0, value  # a copy, whole on every worker
        return
    for shard in value.local_shards():
        offsets = [*shard.metadata.shard_offsets, 0]
        yield offsets[0], offsets[1], shard.tensor
