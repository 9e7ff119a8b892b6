"""The joint loss of a step: global means per task, weighed by the balancing method.

Legend: B rows of this worker's batch, O tower outputs, T tasks, W workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import ple
from pipeline.config.balance import BalanceConfig
from pipeline.config.tasks import TaskConfig
from pipeline.data.batch import Batch
from pipeline.training.balance_figures import BalanceFigures
from pipeline.training.balancing import build_balancer, steps_between_renewals
from pipeline.training.clock import PhaseClock
from pipeline.training.guard import LossGuard
from ple.balancing import read_outputs, task_gramian


class JointLoss:
    """Σ_k α_k ω_k L_k with L_k = Σδ·w·ℓ / Σδ·w over the global batch (PLE paper, section 4.3).

    Every worker divides by the all-reduced denominator; what it differentiates is W times its share
    of the sum, because DDP and TorchRec both average gradients over workers. The balancing method
    sees the losses ω_k L_k and gives α_k.

    One step is :meth:`begin`, then the forward pass, which ends in :meth:`objective`, then the
    backward pass, then :meth:`finish`. Task gradients are taken inside the forward pass, at the
    boundary activations: no parameter is touched, so fused tables move in the one backward pass
    only. Nothing waits for the device; workers wait for one another where a method's weights depend
    on this very step.

    Args:
        tasks: the tasks, in order.
        heads: losses and denominators.
        balance: the method and its options.
        device: of the batches.
        clock: told how long comparing gradients takes.
        seed: of the method's random choices.
        steps_per_epoch: unit of time of ``kind: decay``.
        measure_every: steps from one measurement of task gradients to the next, for the logs, with
            methods that need none themselves; 0 = never.
        guard: looks at the losses of every step before they are used; None = nobody does.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        heads: ple.Heads,
        balance: BalanceConfig,
        device: torch.device,
        clock: PhaseClock,
        seed: int = 0,
        steps_per_epoch: int = 1,
        measure_every: int = 0,
        guard: LossGuard | None = None,
    ) -> None:
        self._names = [task.name for task in tasks]
        self._heads = heads
        self._clock = clock
        self._guard = guard
        self._boundary = balance.boundary
        self._every = steps_between_renewals(balance, steps_per_epoch)
        self._measure_every = measure_every if len(tasks) > 1 else 0
        self._balancer = build_balancer(balance, tasks, steps_per_epoch, seed, device)
        self._omega_T = torch.tensor([task.weight for task in tasks], device=device)
        self._world_size = dist.get_world_size()
        count = len(tasks)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=device, dtype=torch.float64)

        # Methods that go by losses alone take their mean over steps: the sum of this worker's
        # shares since the last time, and of how many steps.
        self._window_T, self._window_steps = zeros(count), 0
        # For each task the towers its loss reads; found at the first comparison.
        self._reads: list[list[int]] | None = None
        self._now: _Step | None = None
        self._pending: _Pending | None = None
        # Since the last log: Σδ·w·ℓ and Σδ·w, α·ω by step, and inner products as measured, all
        # of this worker.
        self._sums_2T = zeros(2, count)
        self._weight_sums_T, self._weight_steps = zeros(count), 0
        self._gramian_sums_TT, self._measurements = zeros(count, count), 0

    def begin(self, batch: Batch, step: int) -> None:
        """Starts a step: sends the denominators on their way, sets the weights known by now."""
        local_T = self._heads.totals(batch.weights_BT, batch.labels_BT)
        totals_T = local_T.clone()
        work = dist.all_reduce(totals_T, async_op=True) if self._world_size > 1 else None
        self._now = _Step(step, batch, local_T, totals_T, work)
        self._take_in_pending()
        self._balancer.prepare(step)

    @property
    def wants_boundary(self) -> bool:
        """Whether :meth:`objective` takes gradients in the step that has begun."""
        return self._renews_by_gradients or self._measures

    def objective(self, outputs_BO: Tensor, boundary: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """What to differentiate, from the outputs of the towers.

        Args:
            outputs_BO: outputs of the towers.
            boundary: activations by the name of the boundary; may be empty unless
                :attr:`wants_boundary`.

        Raises:
            BadLossError: the guard refuses the losses; they have entered no figure yet.
        """
        now = self._begun
        numerators_T = self._heads.losses(outputs_BO, now.batch.labels_BT, now.batch.weights_BT)
        with self._clock.phase("communication"):
            if now.work is not None:
                now.work.wait()
            if self._guard is not None:
                self._guard.check(numerators_T, now.totals_T)
        shares_T = numerators_T / now.totals_T.clamp(min=1e-12)
        self._sums_2T += torch.stack([numerators_T.detach(), now.local_totals_T])
        if self._balancer.wants == "losses":
            self._window_T += shares_T.detach()
            self._window_steps += 1
        if self.wants_boundary:
            with self._clock.phase("balancing"):
                self._compare_gradients(shares_T, boundary)
        weights_T = self._balancer.weights_T * self._omega_T
        self._weight_sums_T += weights_T
        self._weight_steps += 1
        return (shares_T * weights_T).sum() * self._world_size

    def finish(self) -> None:
        """Ends a step, after its backward pass or where there is none."""
        due = self._balancer.wants == "losses" and (self._begun.number + 1) % self._every == 0
        if due and self._window_steps:
            self._hand_over(self._window_T / self._window_steps, None)
            self._window_T = torch.zeros_like(self._window_T)
            self._window_steps = 0
        self._now = None

    def mean_losses(self) -> dict[str, float]:
        """Mean loss by task over all workers since the last call; every rank must call it."""
        dist.all_reduce(self._sums_2T)
        numerators, totals = self._sums_2T.tolist()
        self._sums_2T.zero_()
        return {
            name: numerator / total
            for name, numerator, total in zip(self._names, numerators, totals, strict=True)
            if total > 0
        }

    def figures(self) -> BalanceFigures:
        """Weights, norms and cosines since the last call; every rank must call it."""
        if self._weight_steps == 0:
            return BalanceFigures()
        dist.all_reduce(self._gramian_sums_TT)
        weights_T = self._weight_sums_T / self._weight_steps
        gramian_TT = self._gramian_sums_TT / max(self._measurements, 1)
        *gramian, weights = torch.cat([gramian_TT, weights_T[None]]).tolist()
        self._weight_sums_T.zero_()
        self._gramian_sums_TT.zero_()
        self._weight_steps = self._measurements = 0
        return BalanceFigures.of(self._names, weights, gramian)

    def state_dict(self) -> dict[str, Tensor]:
        """The method's state, equal on all workers and fit for any number of them.

        Every rank must call it, between steps.
        """
        self._take_in_pending()
        window_T = self._window_T.clone()
        dist.all_reduce(window_T)
        steps = torch.tensor(self._window_steps, dtype=torch.float64)
        return {**self._balancer.state_dict(), "window": window_T, "window_steps": steps}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` gave. Raises ValueError for another method's state."""
        rest = dict(state)
        window_T, steps = rest.pop("window"), rest.pop("window_steps")
        self._balancer.load_state_dict(rest)
        self._window_T.copy_(window_T if dist.get_rank() == 0 else torch.zeros_like(window_T))
        self._window_steps = int(steps)
        self._pending = None

    def own_state(self) -> dict[str, Any]:
        """This worker's sums since the last log and the last renewal of weights."""
        return {
            "window": self._window_T.clone(),
            "window_steps": self._window_steps,
            "sums": self._sums_2T.clone(),
            "weight_sums": self._weight_sums_T.clone(),
            "weight_steps": self._weight_steps,
            "gramian_sums": self._gramian_sums_TT.clone(),
            "measurements": self._measurements,
        }

    def load_own_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restores what :meth:`own_state` of all workers gave, in the order of their ranks.

        Call it after :meth:`load_state_dict`. With another number of workers the chief goes on
        with the sums of all.
        """
        rank, first = dist.get_rank(), states[0]
        self._weight_sums_T.copy_(first["weight_sums"])  # the same on all workers
        self._weight_steps, self._measurements = first["weight_steps"], first["measurements"]
        if len(states) == self._world_size:
            mine = [states[rank]]
            self._window_T.copy_(mine[0]["window"])
            self._window_steps = mine[0]["window_steps"]
        else:
            mine = list(states) if rank == 0 else []
        for name, sums in (("sums", self._sums_2T), ("gramian_sums", self._gramian_sums_TT)):
            sums.zero_()
            for state in mine:
                sums += state[name].to(sums.device)

    @property
    def _begun(self) -> "_Step":
        assert self._now is not None, "begin() comes first"
        return self._now

    @property
    def _renews_by_gradients(self) -> bool:
        return self._balancer.wants == "gradients" and self._begun.number % self._every == 0

    @property
    def _measures(self) -> bool:
        return bool(self._measure_every) and (self._begun.number + 1) % self._measure_every == 0

    def _compare_gradients(
        self, shares_T: Tensor, boundary: Mapping[str, Sequence[Tensor]]
    ) -> None:
        outputs = boundary["outputs"]
        if self._reads is None:
            self._reads = self._read_outputs([output_BO.shape[1] for output_BO in outputs])
        gramian_TT = task_gramian(shares_T, boundary[self._boundary], outputs, self._reads)
        self._gramian_sums_TT += gramian_TT
        self._measurements += 1
        if self._renews_by_gradients:
            self._hand_over(shares_T.detach().double(), gramian_TT)
            if not self._balancer.lags:
                self._take_in_pending()

    def _read_outputs(self, widths: list[int]) -> list[list[int]]:
        """The towers each task's loss reads, seen on rows that lie in every sample space."""
        generator = torch.Generator().manual_seed(0)
        device, rows = self._omega_T.device, 64
        outputs_BO = torch.randn(rows, sum(widths), generator=generator).to(device).requires_grad_()
        labels_BT = torch.randint(0, 2, (rows, len(self._names)), generator=generator).to(device)
        weights_BT = torch.ones(labels_BT.shape, device=device)
        losses_T = self._heads.losses(outputs_BO, labels_BT.float(), weights_BT)
        return read_outputs(losses_T, outputs_BO, widths)

    def _hand_over(self, losses_T: Tensor, gramian_TT: Tensor | None) -> None:
        """Sends this worker's part of the figures to all others."""
        parts = [losses_T] if gramian_TT is None else [losses_T, gramian_TT.flatten()]
        flat = torch.cat(parts)
        self._pending = _Pending(self._begun.number, flat, dist.all_reduce(flat, async_op=True))

    def _take_in_pending(self) -> None:
        if self._pending is None:
            return
        step, flat, work = self._pending.step, self._pending.flat, self._pending.work
        self._pending = None
        work.wait()
        tasks = len(self._names)
        losses_T = flat[:tasks] * self._omega_T
        gramian_TT = None
        if self._balancer.wants == "gradients":
            gramian_TT = flat[tasks:].view(tasks, tasks)
            gramian_TT = gramian_TT * torch.outer(self._omega_T, self._omega_T)
        self._balancer.observe(step, losses_T, gramian_TT)


@dataclass(frozen=True)
class _Step:
    """The step under way."""

    number: int
    batch: Batch
    local_totals_T: Tensor
    totals_T: Tensor
    work: dist.Work | None


@dataclass(frozen=True)
class _Pending:
    """Figures on their way between the workers."""

    step: int
    flat: Tensor
    work: dist.Work
