"""Optimizers and their schedule: fused ones step inside backward, the dense one after it."""

import math

import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel

from pipeline.config.schema import DenseOptimizerConfig, ScheduleConfig
from pipeline.training.errors import TrainingError

_DENSE: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def rate_multiplier(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step over its peak.

    Args:
        step: number of the step, from 0.
        total_steps: steps of the whole run, warm-up included.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    final = schedule.final_fraction or 0.0
    course = max(1, total_steps - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / course)
    if schedule.kind == "linear":
        return 1.0 - (1.0 - final) * progress
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Optimizers:
    """Dense and fused optimizers of one sharded model, moved together by one schedule.

    The fused optimizer steps inside ``backward``, so its rate must be set before: call
    :meth:`prepare` ahead of the backward pass and :meth:`step` after it.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        dense: DenseOptimizerConfig,
        schedule: ScheduleConfig,
        total_steps: int,
    ) -> None:
        if schedule.warmup_steps >= total_steps:
            raise TrainingError(
                f"schedule.warmup_steps: {schedule.warmup_steps} steps of warm-up, and the run has "
                f"{total_steps} in all; lower it or raise train.epochs"
            )
        self._schedule = schedule
        self._total_steps = total_steps
        self._clip_norm = dense.clip_norm
        self._fused = model.fused_optimizer
        self._fused_peaks = [group["lr"] for group in self._fused.param_groups]
        self._parameters = dense_parameters(model)
        self._peak = dense.learning_rate
        self.dense = _dense_optimizer(self._parameters, dense)
        self._multiplier = 1.0
        self._clipped = torch.zeros((), device=self._parameters[0].device)
        self._steps = 0

    @property
    def learning_rate(self) -> float:
        """The dense learning rate in force."""
        return self._peak * self._multiplier

    def clipped_fraction(self) -> float | None:
        """Share of clipped steps since the last call; None without clip_norm."""
        if self._clip_norm is None or self._steps == 0:
            return None
        fraction = self._clipped.item() / self._steps
        self._clipped.zero_()
        self._steps = 0
        return fraction

    def prepare(self, step: int) -> None:
        """Sets the rates of this step and clears the dense gradients."""
        multiplier = rate_multiplier(self._schedule, step, self._total_steps)
        if multiplier != self._multiplier:
            self._multiplier = multiplier
            for group in self.dense.param_groups:
                group["lr"] = self._peak * multiplier
            for group, peak in zip(self._fused.param_groups, self._fused_peaks, strict=True):
                group["lr"] = peak * multiplier
            # Hands the new rate to the tables; their rows move inside backward only.
            self._fused.step()
        self.dense.zero_grad()

    def step(self) -> None:
        """Moves the dense part; the tables have moved already."""
        if self._clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
            self._clipped += norm > self._clip_norm
            self._steps += 1
        self.dense.step()


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters outside the fused tables, in the order of the model."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".embedding_bags." not in name
    ]


def _dense_optimizer(
    parameters: list[nn.Parameter], config: DenseOptimizerConfig
) -> torch.optim.Optimizer:
    # fused=True: one kernel over all parameters, on CPU and on CUDA.
    return _DENSE[config.kind](  # type: ignore[call-arg]
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
