"""What every balancing method is: weights of the tasks, learnt from figures about the whole batch.

Shape suffixes: T tasks; K×K in papers is TT here.
"""

from typing import Literal

import torch
from torch import Tensor


class Balancer:
    """Gives the joint loss Σ_k α_k L_k its weights α_T, where L_k is task k's mean loss.

    The caller takes L_k over the batches of all workers, hands over what the method wants to know
    with :meth:`observe`, and asks for :attr:`weights_T` when it forms the joint loss. All state is
    a few tensors of T numbers on the device, and every method is deterministic: workers that
    observe equal figures hold equal weights. Nothing here waits for the device.

    A task whose rows are missing from the batch has a loss of exactly zero and no gradient; methods
    leave it out of what they compare.

    Args:
        tasks: T, number of tasks.
        device: of the weights.

    Attributes:
        wants: what :meth:`observe` needs: nothing, the losses, or the Gramian of the task gradients
            and the losses of the same step.
        lags: the weights of a step may come from what was observed one step before, so that the
            caller need not wait for the figures of the step itself.
        weights_T: α in force, float32.
    """

    wants: Literal["nothing", "losses", "gradients"] = "nothing"
    lags = False

    def __init__(self, tasks: int, device: torch.device | str = "cpu") -> None:
        if tasks < 1:
            raise ValueError(f"tasks must be at least 1, not {tasks}")
        self.tasks = tasks
        self._state = {"weights": torch.ones(tasks, dtype=torch.float64, device=device)}
        self.weights_T = torch.ones(tasks, device=device)

    def prepare(self, step: int) -> None:
        """Sets the weights that depend on the number of the step alone; steps count from 0."""

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        """Takes in figures and renews the weights.

        Args:
            step: number of the step the figures are of.
            losses_T: mean losses L_k, float64, equal on all workers.
            gramian_TT: G_ab = ⟨g_a, g_b⟩, g_k the gradient of L_k at the boundary over the rows of
                all workers (see :func:`ple.balancing.task_gramian`), float64; None where losses
                are all that is wanted.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the method remembers, as small tensors."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` gave. Raises ValueError for another method's state."""
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in self._state.items()}:
            raise ValueError(
                f"the balancing state holds {sorted(state)}, {type(self).__name__} of {self.tasks} "
                f"tasks holds {sorted(self._state)}; resume with the same balance and tasks"
            )
        for name, value in state.items():
            self._state[name].copy_(value)
        self._publish(self._state["weights"])

    def _publish(self, weights_T: Tensor) -> None:
        """Puts new weights in force."""
        self._state["weights"] = weights_T
        self.weights_T = weights_T.float()


def norms(gramian_TT: Tensor) -> Tensor:
    """‖g_k‖ of every task, from the diagonal of the Gramian."""
    return gramian_TT.diagonal().clamp(min=0).sqrt()
