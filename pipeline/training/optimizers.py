"""Optimizers and their schedules: fused ones step inside backward, all others after it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from pipeline.config.optimizers import DenseOptimizerConfig, ScheduleConfig, TableOptimizerConfig
from pipeline.training.averaging import WeightAverage
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
    if schedule.kind == "step":
        assert schedule.step_every is not None
        drops = (step - schedule.warmup_steps) // schedule.step_every
        return float((schedule.step_fraction or 0.1) ** drops)
    final = schedule.final_fraction or 0.0
    course = max(1, total_steps - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / course)
    if schedule.kind == "linear":
        return 1.0 - (1.0 - final) * progress
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Optimizers:
    """Optimizers of one sharded model: of its dense part, of fused tables, of copied tables.

    The fused optimizer steps inside ``backward``, so its rate must be set before: call
    :meth:`prepare` ahead of the backward pass and :meth:`step` after it. Tables of which every
    worker has a copy are in no fused optimizer; a plain one moves them by the same arithmetic.

    Args:
        model: the sharded ranker.
        dense: optimizer of the dense part.
        schedule: of its rate.
        total_steps: steps of the run.
        tables: what the fused tables were sharded with; needed where tables are copied.
        table_schedule: schedule of the tables' rate; absent = ``schedule``.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        dense: DenseOptimizerConfig,
        schedule: ScheduleConfig,
        total_steps: int,
        tables: TableOptimizerConfig | None = None,
        table_schedule: ScheduleConfig | None = None,
    ) -> None:
        for name, course in (("schedule", schedule), ("table_schedule", table_schedule)):
            if course is not None and course.warmup_steps >= total_steps:
                raise TrainingError(
                    f"{name}.warmup_steps: {course.warmup_steps} steps of warm-up, and the run has "
                    f"{total_steps} in all; lower it or raise train.epochs"
                )
        self._schedule, self._table_schedule = schedule, table_schedule
        self._total_steps = total_steps
        self._clip_norm = dense.clip_norm
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._parameters = dense_parameters(model)
        self.dense = _dense_optimizer(self._parameters, dense)
        self._dense_rate = _Rate([self.dense])
        self._fused = model.fused_optimizer
        copied = copied_tables(model)
        self._copied = _copied_optimizer(copied, tables) if copied else None
        self._table_rate = _Rate([self._fused, *([self._copied] if self._copied else [])])
        self.average = None
        if dense.ema_decay is not None:
            self.average = WeightAverage(model.module, dense.ema_decay)
        self._clipped = torch.zeros((), device=self._parameters[0].device)
        self._steps = 0

    @property
    def learning_rate(self) -> float:
        """The dense learning rate in force."""
        return float(self.dense.param_groups[0]["lr"])

    @property
    def table_multiplier(self) -> float:
        """The tables' learning rate in force over its peak."""
        return self._table_rate.multiplier

    def clipped_fraction(self) -> float | None:
        """Share of clipped steps since the last call; None without clip_norm."""
        if self._clip_norm is None or self._steps == 0:
            return None
        fraction = self._clipped.item() / self._steps
        self._clipped.zero_()
        self._steps = 0
        return fraction

    def prepare(self, step: int) -> None:
        """Sets the rates of this step and clears the gradients."""
        self.set_rates(step)
        self.dense.zero_grad()
        if self._copied is not None:
            self._copied.zero_grad()

    def set_rates(self, step: int) -> None:
        """Sets the rates of a step, from 0."""
        multiplier = rate_multiplier(self._schedule, step, self._total_steps)
        self._dense_rate.set(multiplier)
        if self._table_schedule is not None:
            multiplier = rate_multiplier(self._table_schedule, step, self._total_steps)
        if self._table_rate.set(multiplier):
            # Hands the new rate to the tables; their rows move inside backward only.
            self._fused.step()

    def step(self) -> None:
        """Moves the dense part and copied tables; all other tables have moved already."""
        if self._clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
            self._clipped += norm > self._clip_norm
            self._steps += 1
        self.dense.step()
        if self._copied is not None:
            self._copied.step()
        if self.average is not None:
            self.average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model as it is evaluated and exported: with averages, if there are any."""
        if self.average is None:
            yield
        else:
            with self.average.applied():
                yield

    def restart_average(self) -> None:
        """After the weights were replaced: the averages begin at them."""
        if self.average is not None:
            self.average.restart()

    def finite(self) -> bool:
        """Whether all dense weights are. Waits for the device."""
        norms = torch._foreach_norm([p.detach() for p in self._parameters])
        return bool(torch.stack(list(norms)).isfinite().all())

    def tensors(self) -> dict[str, Any]:
        """The state of every optimizer, by parameter, and the averages: what is to be loaded in
        place. Missing state of optimizers that have not stepped yet is made first."""
        fused: dict[str, Any] = self._fused.state_dict()["state"]
        tree = {
            "fused_optimizer": fused,
            "dense_optimizer": self._states(self.dense),
            "copied_optimizer": self._states(self._copied) if self._copied else {},
            "average": {} if self.average is None else self.average.state_dict(),
        }
        return {name: part for name, part in tree.items() if part}

    def load_tensors(self, tree: dict[str, Any]) -> None:
        """After :meth:`tensors` was filled in place."""
        if "fused_optimizer" in tree:
            # Without groups: rates are functions of the step.
            self._fused.load_state_dict({"state": tree["fused_optimizer"]})
        if self.average is not None:
            self.average.load_state_dict(tree["average"])

    def counts(self) -> dict[str, Any]:
        """Clipped steps since the last log."""
        return {"clipped": self._clipped.clone(), "steps": self._steps}

    def load_counts(self, counts: dict[str, Any]) -> None:
        """Restores what :meth:`counts` gave."""
        self._clipped.copy_(counts["clipped"])
        self._steps = counts["steps"]

    def _states(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's tensors by the name of the parameter."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if any(p not in optimizer.state for p in parameters):
            _make_state(optimizer, parameters)
        return {
            self._names[id(p)]: {k: v for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
            for p in parameters
            if optimizer.state[p]
        }


def _make_state(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Makes an optimizer's state by a step of no length, which moves nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    gradients = [parameter.grad for parameter in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
        if "step" in optimizer.state[parameter]:
            optimizer.state[parameter]["step"].zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class _Rate:
    """Learning rates of optimizers, moved together."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._peaks = [group["lr"] for group in self._groups]
        self.multiplier = 1.0

    def set(self, multiplier: float) -> bool:
        """Sets the rates to the multiple of their peaks; true if that is a change."""
        if multiplier == self.multiplier:
            return False
        self.multiplier = multiplier
        for group, peak in zip(self._groups, self._peaks, strict=True):
            group["lr"] = peak * multiplier
        return True


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters outside the tables, in the order of the model."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".embedding_bags." not in name
    ]


def copied_tables(model: nn.Module) -> list[nn.Parameter]:
    """The tables of which every worker has a copy, in the order of the model."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if ".embedding_bags." in name and not hasattr(parameter, "_in_backward_optimizers")
    ]


def _dense_optimizer(
    parameters: list[nn.Parameter], config: DenseOptimizerConfig
) -> torch.optim.Optimizer:
    # fused=True: one kernel over all parameters, on CPU and on CUDA.
    return _DENSE[config.kind](  # type: ignore[call-arg]
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def _copied_optimizer(
    parameters: list[nn.Parameter], config: TableOptimizerConfig | None
) -> torch.optim.Optimizer:
    """The arithmetic of the fused optimizer: rows without a gradient stay where they are."""
    assert config is not None, "tables are copied, and nothing says how they are moved"
    eps = 1e-8 if config.eps is None else config.eps
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    if config.kind == "adagrad":
        return torch.optim.Adagrad(parameters, lr=config.learning_rate, eps=eps)
    assert config.kind == "rowwise_adagrad", config.kind
    return RowWiseAdagrad(parameters, lr=config.learning_rate, eps=eps)
