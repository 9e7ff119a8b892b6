import numpy as np
import ple_reference as reference
import pytest
import torch

from ple.gates import Gate, mix_batched, mix_looped


@pytest.mark.parametrize(("hidden", "bias"), [((), False), ((), True), ((6, 3), False)])
def test_gate_equals_the_reference(hidden, bias) -> None:
    gate = Gate(5, 4, hidden, bias, "silu").double()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = 3 * torch.randn(8, 5, dtype=torch.float64)
    expected = reference.gate(reference.parameters_of(gate), "", x.numpy(), 4, "silu")
    np.testing.assert_allclose(gate(x).detach().numpy(), expected, rtol=1e-12)
    assert any(name.endswith("out.bias") for name, _ in gate.named_parameters()) == bias


def test_a_gate_over_one_expert_is_the_constant_one_without_parameters() -> None:
    gate = Gate(5, 1, (6,), bias=True)
    assert list(gate.parameters()) == []
    assert torch.equal(gate(torch.randn(3, 5)), torch.ones(3, 1))
    with pytest.raises(ValueError, match="at least one expert"):
        Gate(5, 0)


def test_large_logits_do_not_overflow() -> None:
    gate = Gate(1, 2)
    torch.nn.init.constant_(gate.logits.out.weight[0], 1e4)
    assert torch.equal(gate(torch.ones(1, 1)), torch.tensor([[1.0, 0.0]]))


def mixes():
    def looped(gates, banks, members):
        return mix_looped(gates, [list(bank.unbind(1)) for bank in banks], members)

    return [pytest.param(looped, id="looped"), pytest.param(mix_batched, id="batched")]


@pytest.mark.parametrize("mix", mixes())
def test_hand_worked_mix(mix) -> None:
    bank_0 = torch.tensor([[[1.0, 2.0]]])  # one expert
    bank_1 = torch.tensor([[[10.0, 20.0], [100.0, 200.0]]])  # two experts
    gates = [torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.75, 0.25]])]
    sums = mix(gates, [bank_0, bank_1], [(0, 1), (1,)])
    assert torch.equal(sums[0], torch.tensor([[0.5 + 2.5 + 25.0, 1.0 + 5.0 + 50.0]]))
    assert torch.equal(sums[1], torch.tensor([[7.5 + 25.0, 15.0 + 50.0]]))


@pytest.mark.parametrize("mix", mixes())
@pytest.mark.parametrize("read", [(0, 1, 2), (1,)])
def test_mix_gradcheck_also_where_the_loss_reads_some_sums_only(mix, read) -> None:
    def double(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    gates = [double(3, 3), double(3, 4), double(3, 1)]
    banks = [double(3, 2, 5), double(3, 1, 5), double(3, 3, 5)]

    def sums(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = mix(tensors[:3], tensors[3:], [(0, 1), (1, 2), (1,)])
        return tuple(outputs[index] for index in read)

    assert torch.autograd.gradcheck(sums, (*gates, *banks))
