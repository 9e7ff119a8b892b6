"""Exponential moving average of the dense weights (Polyak and Juditsky 1992; Tarvainen 2017)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of parameters, and of the running statistics that belong to them.

    After step n (from 1) average = d · average + (1 - d) · weights with
    d = min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten. Tables are not
    averaged: that would touch every row in every step.

    Args:
        model: its parameters and floating-point buffers outside the tables are averaged.
        decay: d in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = [n for n, t in named if _is_dense(n) and t.is_floating_point()]
        by_name = dict(named)
        self._weights: list[Tensor] = [by_name[name].detach() for name in self._names]
        self._averages = [weight.clone() for weight in self._weights]
        self._decay = decay
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights in; call it after every step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew, at the weights as they are."""
        torch._foreach_copy_(self._averages, self._weights)
        self._steps = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has its averages for weights while this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        kept = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._averages)
        torch._foreach_copy_(self._averages, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by the name of the weight, and ``steps``; equal on all workers."""
        averages = dict(zip(self._names, self._averages, strict=True))
        return {**averages, "steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` gave. Raises KeyError for another model's."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])
        self._steps = int(state["steps"])


def _is_dense(name: str) -> bool:
    return not name.startswith("embeddings.") and ".embeddings." not in name
