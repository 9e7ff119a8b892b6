"""One training step: joint loss over the global batch, backward, optimizers."""

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel

from pipeline.data.batch import Batch
from pipeline.training.ahead import Ahead
from pipeline.training.balance_figures import BalanceFigures
from pipeline.training.clock import PhaseClock
from pipeline.training.errors import TrainingError
from pipeline.training.guard import BadLossError
from pipeline.training.joint_loss import JointLoss
from pipeline.training.optimizers import Optimizers
from pipeline.training.profiling import (
    COMMUNICATION,
    DENSE_BACKWARD,
    DENSE_FORWARD,
    EMBEDDING_BACKWARD,
    OPTIMIZER,
    watch_step,
)
from ple.batch_moments import BatchMoments


class TrainStep:
    """Runs steps and gives what is logged of them.

    Args:
        model: the sharded ranker.
        optimizers: of its dense part and its tables.
        joint_loss: what is minimised.
        clock: told how long each phase takes.
        ahead: what sends ids of batches ahead; absent = nobody does.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        joint_loss: JointLoss,
        clock: PhaseClock,
        ahead: Ahead | None = None,
    ) -> None:
        self._model = model
        self._ahead = ahead
        self._ranker = model.module
        self._optimizers = optimizers
        self._joint_loss = joint_loss
        self._clock = clock
        watch_step(self._ranker, clock)
        # What the backward pass ends with: gradients of others, if there are others to wait for.
        if self._ranker.embeddings is None:
            self._end_of_backward = DENSE_BACKWARD
        else:
            alone = dist.get_world_size() == 1
            self._end_of_backward = EMBEDDING_BACKWARD if alone else COMMUNICATION

    def __call__(self, batch: Batch, step: int) -> None:
        """Trains on one batch already on the device; ``step`` counts from 0.

        Raises:
            BadLossError: on every rank; no weight, average or sum has moved, and the next step may
                follow.
        """
        kept = self._statistics()
        try:
            self._step(batch, step)
        except BadLossError:
            self._joint_loss.finish()
            self._clock.stop()
            for buffer, value in kept:
                buffer.copy_(value)
            raise

    def _step(self, batch: Batch, step: int) -> None:
        joint_loss, clock = self._joint_loss, self._clock
        clock.start()
        joint_loss.begin(batch, step)
        clock.lap(COMMUNICATION)
        self._optimizers.prepare(step)
        clock.lap(OPTIMIZER)
        ahead = self._ahead
        ids = (batch.ids, batch.weighted_ids) if ahead is None else ahead.ids_of(batch)
        features = *ids, batch.dense_BN
        real_B = (batch.weights_BT != 0).any(1) if self._ranker.batch_statistics else None
        # Laps within the two passes are taken by hooks, see watch_step.
        if joint_loss.wants_boundary:
            loss = self._model(*features, real_B=real_B, objective=joint_loss.objective)
        else:
            loss = joint_loss.objective(self._model(*features, real_B=real_B), {})
        if self._ranker.gate_l2:
            loss = loss + self._ranker.penalty()
        clock.lap(DENSE_FORWARD)
        if ahead is not None:
            ahead.send()
            clock.lap(COMMUNICATION)
        loss.backward()
        clock.lap(self._end_of_backward)
        self._optimizers.step()
        clock.lap(OPTIMIZER)
        joint_loss.finish()
        clock.stop()

    def _statistics(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Running statistics of batches, which a forward pass moves, and copies of them."""
        if not self._ranker.batch_statistics:
            return []
        moments = [m for m in self._ranker.modules() if isinstance(m, BatchMoments)]
        return [(buffer, buffer.clone()) for m in moments for buffer in m.buffers()]

    def mean_losses(self, step: int) -> dict[str, float]:
        """Mean loss by task over all workers since the last call; every rank must call it.

        Raises:
            TrainingError: a loss is not finite.
        """
        losses = self._joint_loss.mean_losses()
        for name, loss in losses.items():
            if not abs(loss) < float("inf"):
                raise TrainingError(
                    f"the loss of task {name!r} is {loss} within the steps up to {step}: lower "
                    "table_optimizer.learning_rate or dense_optimizer.learning_rate, or set "
                    "dense_optimizer.clip_norm; for squared_error check the label's range"
                )
        return losses

    def balance_figures(self) -> BalanceFigures:
        """Weights, gradient norms and cosines since the last call; every rank must call it."""
        return self._joint_loss.figures()
