"""A batch whose loss is beyond use: kept for inspection, then the run stops or goes on."""

import json
from typing import Any

import torch.distributed as dist
from safetensors.torch import save
from torchrec import KeyedJaggedTensor

from pipeline.config.failures import FailuresConfig
from pipeline.data.batch import Batch
from pipeline.data.storage import open_store
from pipeline.training.errors import TrainingError
from pipeline.training.guard import BadLossError
from pipeline.training.worker_context import WorkerContext

_REMEDY = (
    "lower table_optimizer.learning_rate or dense_optimizer.learning_rate, or set "
    "dense_optimizer.clip_norm; for squared_error check the label's range; or pass over such "
    "batches with failures.bad_loss=skip_batch"
)


class BadBatches:
    """Every rank must make the same calls.

    Args:
        failures: whether batches may be skipped, and how many.
        run_folder: receives ``bad_batch/step-N``; a path or a URI.
        context: this worker.
    """

    def __init__(self, failures: FailuresConfig, run_folder: str, context: WorkerContext) -> None:
        self._failures, self._run_folder, self._context = failures, run_folder, context

    def refuse(
        self,
        bad: BadLossError,
        batch: Batch,
        step: int,
        sources: dict[str, list[int]],
        count: int,
        standing: str,
    ) -> None:
        """Keeps a batch; returns if it may be skipped.

        Args:
            bad: what is wrong with it.
            batch: this worker's part.
            step: its number, from 1.
            sources: row groups by file in which this worker's rows lie.
            count: such batches so far, this one included.
            standing: the checkpoint that stands, in words.

        Raises:
            TrainingError: the run stops here.
        """
        about = {
            "step": step,
            "losses": {name: repr(loss) for name, loss in bad.losses.items()},
            "tasks_not_finite_here": bad.here,
            "cursor": batch.cursor,
            "row_groups": sources,
        }
        folder = save_bad_batch(self._run_folder, step, self._context.rank, batch, about)
        parts: list[Any] = [None] * self._context.world_size
        dist.all_gather_object(parts, bad.here)
        if count <= self._failures.skip_limit:
            return
        limit = self._failures.loss_limit
        wrong = {
            name: loss
            for name, loss in bad.losses.items()
            if not abs(loss) <= (float("inf") if limit is None else limit)
            or abs(loss) == float("inf")
        }
        named = ", ".join(f"the loss of task {name!r} is {loss}" for name, loss in wrong.items())
        if any(abs(loss) < float("inf") for loss in wrong.values()):
            named += f" (failures.loss_limit is {limit:g})"
        workers = [str(rank) for rank, tasks in enumerate(parts) if tasks]
        if workers:
            named += f", from rows of worker {' and '.join(workers)}"
        skipped = (
            f"; {count - 1} batches were skipped before it, as many as failures allow"
            if self._failures.skip_limit
            else ""
        )
        raise TrainingError(
            f"step {step}: {named}{skipped}. No weight has moved by it, and {standing}. The batch "
            f"is kept in {folder}. To go on: {_REMEDY}"
        )


def save_bad_batch(
    run_folder: str, step: int, rank: int, batch: Batch, about: dict[str, Any]
) -> str:
    """Writes this worker's part of a batch under ``bad_batch/step-N`` of the run folder.

    ``rank-R.safetensors`` holds dense_BN, labels_BT, weights_BT and by feature ``ids/NAME``,
    ``lengths/NAME`` and ``id_weights/NAME``; ``rank-R.json`` what is known about it.

    Returns:
        The folder, for messages.
    """
    store = open_store(run_folder)
    folder = f"bad_batch/step-{step:08}"
    tensors = {
        "dense_BN": batch.dense_BN,
        "labels_BT": batch.labels_BT,
        "weights_BT": batch.weights_BT,
    }
    for ids in (batch.ids, batch.weighted_ids):
        if ids is not None:
            tensors |= _by_feature(ids)
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    with store.open_output(f"{folder}/rank-{rank}.safetensors") as file:
        file.write(data)
    store.write_text(f"{folder}/rank-{rank}.json", json.dumps(about, indent=1) + "\n")
    return store.name_of(folder)


def _by_feature(ids: KeyedJaggedTensor) -> dict[str, Any]:
    tensors = {}
    for name, feature in ids.to_dict().items():
        tensors[f"ids/{name}"] = feature.values().clone()
        tensors[f"lengths/{name}"] = feature.lengths().clone()
        weights = feature.weights_or_none()
        if weights is not None:
            tensors[f"id_weights/{name}"] = weights.clone()
    return tensors
