"""The moving average against its recurrence in float64, and weights that come back."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.training.averaging import WeightAverage


def test_average_follows_its_recurrence() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.8)
    weight = dict(model.named_parameters())["0.weight"]
    expected = weight.detach().double().numpy().copy()
    for step in range(1, 61):
        with torch.no_grad():
            weight += torch.randn(2, 3)
        average.update()
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach().double().numpy()
    with average.applied():
        np.testing.assert_allclose(weight.detach().numpy(), expected, atol=1e-5)


def test_weights_come_back_bit_for_bit_even_after_an_error() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight += 3.0
    model.running_mean += 7.0
    average.update()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def evaluate() -> None:
        with average.applied():
            assert not torch.equal(model.weight, before["weight"])
            assert not torch.equal(model.running_mean, before["running_mean"])
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        evaluate()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_state_restores_averages_and_the_step() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.9)
    for _ in range(5):
        with torch.no_grad():
            model.weight += 1.0
        average.update()
    restored = WeightAverage(model, decay=0.9)
    restored.load_state_dict(average.state_dict())
    for one in (average, restored):
        with torch.no_grad():
            model.weight.fill_(2.0)
        one.update()
    for name, value in average.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_tables_are_not_averaged() -> None:
    model = nn.ModuleDict({"embeddings": nn.Linear(2, 2), "towers": nn.Linear(2, 2)})
    assert set(WeightAverage(model, 0.9).state_dict()) == {"towers.weight", "towers.bias", "steps"}
