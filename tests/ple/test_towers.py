import numpy as np
import ple_reference as reference
import torch

from ple.towers import Towers


def test_towers_equal_the_reference_each_on_its_own_stream() -> None:
    towers = Towers(5, [(6, 3), (), (4,)], "relu").double()
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    streams = [torch.randn(7, 5, dtype=torch.float64) for _ in range(3)]
    p = reference.parameters_of(towers)
    expected = reference.towers(p, [x.numpy() for x in streams], "relu")
    assert expected.shape == (7, 3)
    np.testing.assert_allclose(towers(streams).detach().numpy(), expected, rtol=1e-11, atol=1e-13)
    towers.float()
    single = towers([x.float() for x in streams]).detach().numpy()
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5)


def test_tower_gradcheck() -> None:
    towers = Towers(4, [(3,), (5, 2)], "silu").double()
    streams = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *x: towers(x), streams)


def test_dropout_acts_on_hidden_layers_in_training_only() -> None:
    towers = Towers(4, [(512,)], dropout=0.5)
    x = [torch.ones(1, 4)]
    assert not torch.equal(towers(x), towers(x))
    towers.eval()
    assert torch.equal(towers(x), towers(x))
    linear = Towers(4, [()], dropout=0.5)
    assert torch.equal(linear(x), linear(x))
