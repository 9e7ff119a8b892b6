"""One training step: joint loss over the global batch, backward, optimizers.

Legend: B rows of this worker's batch, T tasks, W workers.
"""

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel

import ple
from pipeline.config.tasks import TaskConfig
from pipeline.data.batch import Batch
from pipeline.training.clock import PhaseClock
from pipeline.training.errors import TrainingError
from pipeline.training.optimizers import Optimizers


class TrainStep:
    """Runs steps and keeps the sums from which mean losses are logged.

    The loss of task k is Σδ·w·ℓ / Σδ·w over the global batch (PLE paper, section 4.3): every
    worker divides by the all-reduced denominator and multiplies by W, because DDP and TorchRec
    both average gradients over workers.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        tasks: list[TaskConfig],
        device: torch.device,
        clock: PhaseClock,
    ) -> None:
        self._model = model
        self._optimizers = optimizers
        self._names = [task.name for task in tasks]
        self._kinds = [task.loss for task in tasks]
        self._task_weights_T = torch.tensor([task.weight for task in tasks], device=device)
        self._world_size = dist.get_world_size()
        self._clock = clock
        # Σδ·w·ℓ and Σδ·w of this worker since the last log.
        self._sums_2T = torch.zeros(2, len(tasks), device=device, dtype=torch.float64)

    def __call__(self, batch: Batch, step: int) -> None:
        """Trains on one batch already on the device; ``step`` counts from 0."""
        totals_T = batch.weights_BT.sum(0)
        local_totals_T = totals_T.clone()
        work = dist.all_reduce(totals_T, async_op=True)
        self._optimizers.prepare(step)
        with self._clock.phase("forward"):
            logits_BT = self._model(batch.ids, batch.weighted_ids, batch.dense_BN)
            numerators_T = ple.task_losses(
                logits_BT, batch.labels_BT, batch.weights_BT, self._kinds
            )
            work.wait()
            scale_T = self._task_weights_T * self._world_size / totals_T.clamp(min=1e-12)
            loss = (numerators_T * scale_T).sum()
        with self._clock.phase("backward"):
            loss.backward()
        with self._clock.phase("optimizer"):
            self._optimizers.step()
        self._sums_2T += torch.stack([numerators_T.detach(), local_totals_T])

    def mean_losses(self, step: int) -> dict[str, float]:
        """Mean loss by task over all workers since the last call; every rank must call it.

        Raises:
            TrainingError: a loss is not finite.
        """
        dist.all_reduce(self._sums_2T)
        numerators, totals = self._sums_2T.tolist()
        self._sums_2T.zero_()
        losses = {
            name: numerator / total
            for name, numerator, total in zip(self._names, numerators, totals, strict=True)
            if total > 0
        }
        for name, loss in losses.items():
            if not abs(loss) < float("inf"):
                raise TrainingError(
                    f"the loss of task {name!r} is {loss} within the steps up to {step}: lower "
                    "table_optimizer.learning_rate or dense_optimizer.learning_rate, or set "
                    "dense_optimizer.clip_norm; for squared_error check the label's range"
                )
        return losses
