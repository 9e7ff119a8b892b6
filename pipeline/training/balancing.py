"""From ``experiment.balance`` to the method in :mod:`ple.balancing` that it names."""

from collections.abc import Sequence

import torch

from pipeline.config.balance import BalanceConfig
from pipeline.config.tasks import TaskConfig
from ple import balancing

_DWA_WINDOW = 500
# Losses that Kendall's formula treats as the square of a Gaussian's error.
_SQUARED = ("squared_error", "huber")


def steps_between_renewals(balance: BalanceConfig, steps_per_epoch: int) -> int:
    """``balance.every`` with its default filled in."""
    defaults = {"dwa": _DWA_WINDOW, "decay": steps_per_epoch}
    return defaults.get(balance.kind, 1) if balance.every is None else balance.every


def build_balancer(
    balance: BalanceConfig,
    tasks: Sequence[TaskConfig],
    steps_per_epoch: int,
    seed: int,
    device: torch.device,
) -> balancing.Balancer:
    """The balancing method of an experiment.

    Args:
        balance: its ``balance`` section.
        tasks: its tasks, in order.
        steps_per_epoch: unit of time of ``kind: decay`` unless ``every`` says otherwise.
        seed: of the random orders of ``kind: pcgrad``.
        device: of the weights.
    """
    count = len(tasks)
    names = [task.name for task in tasks]
    match balance.kind:
        case "static":
            return balancing.StaticWeights(count, device)
        case "decay":
            gamma = balance.gamma
            assert gamma is not None
            gammas = [gamma[n] if isinstance(gamma, dict) else gamma for n in names]
            every = steps_between_renewals(balance, steps_per_epoch)
            return balancing.DecayedWeights(gammas, every, device)
        case "uncertainty":
            regression = [task.loss in _SQUARED for task in tasks]
            return balancing.UncertaintyWeights(
                regression, _given(balance.learning_rate, 0.01), device
            )
        case "dwa":
            return balancing.DynamicWeightAverage(count, _given(balance.temperature, 2.0), device)
        case "gradnorm":
            return balancing.GradNorm(
                count,
                _given(balance.asymmetry, 1.5),
                _given(balance.learning_rate, 0.025),
                device,
            )
        case "mgda":
            return balancing.MGDA(count, balance.normalize or "none", device)
        case "pcgrad":
            return balancing.PCGrad(count, seed, device)
        case "cagrad":
            return balancing.CAGrad(count, _given(balance.radius, 0.5), device)
        case "norm":
            return balancing.NormBalance(
                count,
                None if balance.target is None else names.index(balance.target),
                _given(balance.relax, 0.7),
                _given(balance.momentum, 0.9),
                device,
            )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
