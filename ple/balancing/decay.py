"""Weights that fade by a power of time."""

from collections.abc import Sequence

import torch

from ple.balancing.balancer import Balancer


class DecayedWeights(Balancer):
    """α_k(t) = γ_k^t.

    H. Tang, J. Liu, M. Zhao, X. Gong: Progressive Layered Extraction (PLE), RecSys 2020,
    section 4.3: ω_k(t) = ω_k(0) · γ_k^t, where ω_k(0) is already part of L_k here. The paper counts
    t in epochs.

    Args:
        gammas: γ_k for every task; below 1 the task fades, above 1 it grows.
        every: steps of one unit of t; t is the number of whole units behind a step.
        device: of the weights.
    """

    def __init__(
        self, gammas: Sequence[float], every: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(len(gammas), device)
        if min(gammas) <= 0:
            raise ValueError(f"every γ must be above 0, not {list(gammas)}")
        self._gammas = list(gammas)
        self._every = every
        self._units = 0

    def prepare(self, step: int) -> None:
        units = step // self._every
        if units != self._units:
            self._units = units
            weights = [gamma**units for gamma in self._gammas]
            self._publish(torch.tensor(weights, dtype=torch.float64, device=self.weights_T.device))
