"""Every kind of the configuration becomes the method it names, with its options."""

from typing import Any

import pytest
import torch

from pipeline.config.balance import BalanceConfig
from pipeline.config.tasks import TaskConfig
from pipeline.training.balance_figures import BalanceFigures
from pipeline.training.balancing import build_balancer, steps_between_renewals
from ple import balancing

TASKS = [
    TaskConfig(name="click"),
    TaskConfig(name="spend", loss="squared_error"),
    TaskConfig(name="buy"),
]


def build(**options: Any) -> balancing.Balancer:
    return build_balancer(BalanceConfig(**options), TASKS, 100, 7, torch.device("cpu"))


def observed(method: balancing.Balancer) -> list[float]:
    """Weights after one look at orthogonal gradients of norms 1, 2, 4 and losses 1, 2, 3."""
    gramian_TT = torch.diag(torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64))
    method.observe(0, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), gramian_TT)
    return method.state_dict()["weights"].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "static"}, balancing.StaticWeights(3)),
        ({"kind": "dwa", "temperature": 0.5}, balancing.DynamicWeightAverage(3, 0.5)),
        ({"kind": "dwa"}, balancing.DynamicWeightAverage(3, 2.0)),
        ({"kind": "gradnorm"}, balancing.GradNorm(3, 1.5, 0.025)),
        (
            {"kind": "gradnorm", "asymmetry": 0.0, "learning_rate": 0.2},
            balancing.GradNorm(3, 0.0, 0.2),
        ),
        ({"kind": "mgda"}, balancing.MGDA(3)),
        ({"kind": "mgda", "normalize": "loss"}, balancing.MGDA(3, "loss")),
        ({"kind": "pcgrad"}, balancing.PCGrad(3, 7)),
        ({"kind": "cagrad"}, balancing.CAGrad(3, 0.5)),
        ({"kind": "cagrad", "radius": 0.1}, balancing.CAGrad(3, 0.1)),
        ({"kind": "norm"}, balancing.NormBalance(3, None, 0.7, 0.9)),
        ({"kind": "norm", "target": "buy", "relax": 0.5}, balancing.NormBalance(3, 2, 0.5, 0.9)),
        ({"kind": "uncertainty"}, balancing.UncertaintyWeights([False, True, False], 0.01)),
    ],
)
def test_methods_and_their_options(options: dict[str, Any], expected: balancing.Balancer) -> None:
    method = build(**options)
    assert type(method) is type(expected)
    assert observed(method) == observed(expected)


def test_decay_counts_epochs_unless_told_otherwise() -> None:
    by_epoch = build(kind="decay", gamma={"click": 0.5, "spend": 1.0, "buy": 0.9})
    by_steps = build(kind="decay", gamma=0.5, every=10)
    by_epoch.prepare(199)
    by_steps.prepare(25)
    assert by_epoch.weights_T.tolist() == pytest.approx([0.5, 1.0, 0.9])
    assert by_steps.weights_T.tolist() == pytest.approx([0.25, 0.25, 0.25])


def test_steps_between_renewals() -> None:
    given = {
        kind: steps_between_renewals(BalanceConfig(kind=kind, **more), 100)  # type: ignore[arg-type]
        for kind, more in {"pcgrad": {}, "dwa": {}, "decay": {"gamma": 0.9}}.items()
    }
    assert given == {"pcgrad": 1, "dwa": 500, "decay": 100}
    assert steps_between_renewals(BalanceConfig(kind="dwa", every=7), 100) == 7


def test_figures_by_hand() -> None:
    gramian = [[4.0, -3.0, 0.0], [-3.0, 9.0, 0.0], [0.0, 0.0, 0.0]]
    figures = BalanceFigures.of(["a", "b", "c"], [1.0, 0.5, 2.0], gramian)
    assert figures.metrics() == {
        "balance/weight/a": 1.0,
        "balance/weight/b": 0.5,
        "balance/weight/c": 2.0,
        "balance/norm/a": 2.0,
        "balance/norm/b": 3.0,
        "balance/cosine/a/b": -0.5,
    }
    assert list(figures.records())[-1] == ("a/b", "cosine", -0.5)
