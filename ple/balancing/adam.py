"""Adam on the few numbers a method learns, from gradients that are known in closed form."""

import torch
from torch import Tensor

_FIRST, _SECOND, _EPS = 0.9, 0.999, 1e-8


class ScalarAdam:
    """D. Kingma, J. Ba: Adam, ICLR 2015, algorithm 1, with the paper's β and ε.

    Its three tensors live in the caller's state, under keys that start with ``adam_``.

    Args:
        state: the caller's state; receives the moments.
        like: gives shape, dtype and device.
        rate: learning rate.
    """

    def __init__(self, state: dict[str, Tensor], like: Tensor, rate: float) -> None:
        self._state = state
        self._rate = rate
        state["adam_first"] = torch.zeros_like(like)
        state["adam_second"] = torch.zeros_like(like)
        state["adam_steps"] = like.new_zeros(())

    def step(self, gradient_T: Tensor) -> Tensor:
        """What to add to the numbers."""
        self._state["adam_steps"] += 1
        steps = self._state["adam_steps"]
        first_T = self._state["adam_first"].lerp_(gradient_T, 1 - _FIRST)
        second_T = self._state["adam_second"].lerp_(gradient_T.square(), 1 - _SECOND)
        mean_T = first_T / (1 - _FIRST**steps)
        deviation_T = (second_T / (1 - _SECOND**steps)).sqrt()
        return -self._rate * mean_T / (deviation_T + _EPS)
