import math

import numpy as np
import ple_reference as reference
import pytest
import torch

from ple.experts import ExpertBank


@pytest.mark.parametrize("normalization", ["none", "layer"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_both_forms_equal_the_reference_and_leave_their_input_alone(activation, normalization):
    bank = ExpertBank(3, 5, (7, 4), activation, normalization).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(6, 5, dtype=torch.float64)
    before = x.clone()
    p = reference.parameters_of(bank)
    expected = np.stack([reference.expert(p, "", e, x.numpy(), activation) for e in range(3)], 1)
    looped, batched = bank.looped(x), bank.batched(x)
    assert torch.equal(x, before)
    np.testing.assert_allclose(torch.stack(looped, 1).detach().numpy(), expected, 1e-11, 1e-13)
    np.testing.assert_allclose(batched.detach().numpy(), expected, 1e-11, 1e-13)


def test_first_layer_is_initialised_by_the_columns_that_carry_a_signal() -> None:
    bank = ExpertBank(4, 64, (256, 128), fan_in=40)
    first, second = bank.weights
    assert not first[:, :, 40:].any()
    assert first[:, :, :40].std().item() == pytest.approx(math.sqrt(2 / 40), rel=0.02)
    assert second.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert not any(bias.any() for bias in bank.biases)


def test_a_bank_of_none_has_no_parameters_and_no_outputs() -> None:
    bank = ExpertBank(0, 5, (7, 4), normalization="layer")
    assert list(bank.parameters()) == []
    assert bank.looped(torch.zeros(3, 5)) == []
    assert bank.batched(torch.zeros(3, 5)).shape == (3, 0, 4)


@pytest.mark.parametrize("arguments", [(-1, 5, (4,)), (1, 5, ()), (1, 5, (0,))])
def test_impossible_banks_are_refused(arguments) -> None:
    with pytest.raises(ValueError):
        ExpertBank(*arguments)
