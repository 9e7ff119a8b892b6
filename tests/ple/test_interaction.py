import numpy as np
import pytest
import torch

from ple.interaction import FeatureGate, LowRankCross


def test_cross_layers_equal_the_equation() -> None:
    cross = LowRankCross(6, layers=3, rank=2).double()
    with torch.no_grad():
        for parameter in cross.parameters():
            parameter.add_(torch.randn_like(parameter))
    x0 = torch.randn(5, 6, dtype=torch.float64)
    before, p = x0.clone(), {n: v.double().numpy() for n, v in cross.state_dict().items()}
    x = x0.numpy()
    for layer in range(3):
        down, up = p[f"layers.downs.{layer}"], p[f"layers.ups.{layer}"]
        x = x0.numpy() * (x @ down.T @ up.T + p[f"layers.biases.{layer}"]) + x
    np.testing.assert_allclose(cross(x0).detach().numpy(), x, rtol=1e-11)
    assert torch.equal(x0, before)


@pytest.mark.parametrize(
    "build", [lambda **k: LowRankCross(8, 2, 3, **k), lambda **k: FeatureGate(8, 2, 3, **k)]
)
def test_spare_columns_stay_zero_and_move_nothing(build) -> None:
    module = build(fan_in=5).double()
    x = torch.randn(7, 8, dtype=torch.float64)
    x[:, 5:] = 0.0
    out = module(x)
    assert not out[:, 5:].any()
    (out * torch.randn_like(out)).sum().backward()
    spare = 0
    for name, parameter in module.named_parameters():
        assert parameter.grad.any(), name
        axis = parameter.shape.index(8)
        assert not parameter.narrow(axis, 5, 3).any(), name
        assert not parameter.grad.narrow(axis, 5, 3).any(), name
        spare += parameter.narrow(axis, 5, 3).numel()
    counted = sum(m.spare_weights() for m in module.modules() if hasattr(m, "spare_weights"))
    assert counted == spare


@pytest.mark.parametrize(
    "module", [LowRankCross(4, 2, 2), FeatureGate(4, 3, 2), FeatureGate(4, 1, 2)]
)
def test_gradcheck(module) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module.double(), (x,))


@pytest.mark.parametrize("build", [LowRankCross, FeatureGate])
@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)])
def test_impossible_sizes_are_refused(build, sizes) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        build(4, *sizes)
