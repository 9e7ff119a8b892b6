import numpy as np
import ple_reference as reference
import pytest
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


def transfer(p: dict[str, np.ndarray], prefix: str, source: np.ndarray, own: np.ndarray):
    """AITM, row by row as the paper writes it."""

    def linear(name: str, u: np.ndarray) -> np.ndarray:
        return p[f"{prefix}{name}.weight"] @ u + p[f"{prefix}{name}.bias"]

    mixed = []
    for z_before, q in zip(source, own, strict=True):
        handed = np.maximum(linear("hand_on", z_before), 0.0)
        scores = [linear("key", u) @ linear("query", u) / np.sqrt(len(q)) for u in (handed, q)]
        powers = np.exp(scores - np.max(scores))
        weights = powers / powers.sum()
        mixed.append(weights[0] * linear("value", handed) + weights[1] * linear("value", q))
    return np.stack(mixed)


def last_hidden(p: dict[str, np.ndarray], prefix: str, x: np.ndarray) -> np.ndarray:
    layer = 0
    while f"{prefix}hidden.{layer}.weight" in p:
        w, b = p[f"{prefix}hidden.{layer}.weight"], p[f"{prefix}hidden.{layer}.bias"]
        x = np.maximum(x @ w.T + b, 0.0)
        layer += 1
    return x


def test_information_passes_from_tower_to_tower() -> None:
    """Click hands on to convert, convert what it made of it to refund; like stays by itself."""
    towers = Towers(
        5, [(6, 3), (), (4,), (7,)], outputs=[1, 1, 2, 1], transfer_from=[None, 0, 1, None]
    ).double()
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    streams = [torch.randn(9, 5, dtype=torch.float64) for _ in range(4)]
    p = reference.parameters_of(towers)
    own = [last_hidden(p, f"towers.{k}.", x.numpy()) for k, x in enumerate(streams)]
    own[1] = transfer(p, "transfers.1.", own[0], own[1])
    own[2] = transfer(p, "transfers.2.", own[1], own[2])
    expected = [
        h @ p[f"towers.{k}.out.weight"].T + p[f"towers.{k}.out.bias"] for k, h in enumerate(own)
    ]
    separate = towers.separate(streams)
    assert [output.shape[1] for output in separate] == [1, 1, 2, 1]
    np.testing.assert_allclose(
        towers(streams).detach().numpy(), np.concatenate(expected, 1), rtol=1e-10, atol=1e-12
    )
    leaves = [x.clone().requires_grad_() for x in streams]
    towers.separate(leaves)[2].sum().backward()
    assert [x.grad is not None for x in leaves] == [True, True, True, False]


def test_transfer_gradcheck() -> None:
    towers = Towers(4, [(3,), (2,)], "silu", transfer_from=[None, 0]).double()
    streams = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *x: towers(x), streams)


def test_plain_towers_have_no_more_parameters_than_before() -> None:
    names = list(Towers(4, [(3,), ()]).state_dict())
    assert names == [
        "towers.0.hidden.0.weight",
        "towers.0.hidden.0.bias",
        "towers.0.out.weight",
        "towers.0.out.bias",
        "towers.1.out.weight",
        "towers.1.out.bias",
    ]


def test_a_tower_takes_from_one_before_it() -> None:
    with pytest.raises(ValueError, match="tower 0 can take from a tower before it, not from 1"):
        Towers(4, [(3,), (3,)], transfer_from=[1, None])
