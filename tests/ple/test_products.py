"""Products of dense layers, by either library, against float64."""

import pytest
import torch
from torch import Tensor

from ple import products
from ple.expert_blocks import Scope
from ple.layers import Linear
from ple.level_blocks import Read, expert_outputs


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)
    monkeypatch.setattr(products, "_LEAST_WORK", 0)
    return request.param


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert float((found.double() - expected).abs().max()) < 1e-5 * max(scale, 1.0)


@pytest.mark.parametrize("rows", [1, 31, 32, 4097])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients(library: bool, rows: int, bias: bool) -> None:
    layer = Linear(48, 20, bias=bias)
    x_BI, d_BO = drawn(rows, 48).requires_grad_(), drawn(rows, 20, seed=1)
    y_BO = layer(x_BI)
    y_BO.backward(d_BO)
    weight_OI = layer.weight.detach().double()
    expected_BO = x_BI.detach().double() @ weight_OI.T
    if bias:
        expected_BO = expected_BO + layer.bias.detach().double()
        close(layer.bias.grad, d_BO.double().sum(0))
    close(y_BO.detach(), expected_BO)
    close(x_BI.grad, d_BO.double() @ weight_OI)
    close(layer.weight.grad, d_BO.double().T @ x_BI.detach().double())


@pytest.mark.parametrize("rows", [64, 2048])
def test_matrices_with_gaps_and_transposed_ones(library: bool, rows: int) -> None:
    wide_BW = drawn(rows, 96)
    columns_BI, right_IO = wide_BW[:, 16:64], drawn(96, 48, seed=1)[:48, 8:40]
    close(products.product(columns_BI, right_IO), columns_BI.double() @ right_IO.double())
    left_OB = wide_BW[:, 64:].T
    close(products.product(left_OB, columns_BI), left_OB.double() @ columns_BI.double())
    row_BI = drawn(1, 48).expand(rows, 48)
    close(products.product(row_BI, right_IO), row_BI.double() @ right_IO.double())


def test_relu_keeps_what_is_not_a_number(library: bool) -> None:
    x_BI, weight_OI, bias_O = drawn(64, 48), drawn(20, 48, seed=1), drawn(20, seed=2)
    x_BI[5, 7] = float("nan")
    layer = (weight_OI.unsqueeze(0), bias_O.unsqueeze(0))
    (found_BO,), _ = expert_outputs(Read(x_BI, [[layer]]), Scope())
    expected_BO = (x_BI.double() @ weight_OI.double().T + bias_O.double()).relu()
    assert torch.equal(found_BO.isnan(), expected_BO.isnan())
    assert int(found_BO.isnan().sum()) == 20
    close(found_BO.nan_to_num(), expected_BO.nan_to_num())


@pytest.mark.parametrize("rows", [2, 31, 4097])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_an_input_by_columns(library: bool, rows: int, bias: bool, turned: bool) -> None:
    layer = Linear(48, 20, bias=bias)
    x_BI = drawn(48, rows).T.requires_grad_()
    d_BO = drawn(20, rows, seed=1).T if turned else drawn(rows, 20, seed=1)
    y_BO = layer(x_BI)
    assert products.by_columns(y_BO)
    weight_OI = layer.weight.detach().double()
    expected_BO = x_BI.detach().double() @ weight_OI.T
    if bias:
        expected_BO = expected_BO + layer.bias.detach().double()
    close(y_BO.detach(), expected_BO)
    # An activation may overwrite it.
    torch.relu_(y_BO).backward(d_BO)
    d_BO = torch.where(expected_BO > 0, d_BO.double(), 0)
    if bias:
        close(layer.bias.grad, d_BO.sum(0))
    close(x_BI.grad, d_BO @ weight_OI)
    close(layer.weight.grad, d_BO.T @ x_BI.detach().double())


@pytest.mark.parametrize(
    ("kind", "rows"), [(torch.float64, 2048), (torch.float32, 4), (torch.bfloat16, 2048)]
)
def test_others_go_the_usual_way(
    monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, rows: int
) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "onednn", None)
    x_BI, weight_OI = drawn(rows, 48).to(kind), drawn(20, 48).to(kind)
    expected_BO = torch.nn.functional.linear(x_BI, weight_OI)
    assert torch.equal(products.linear(x_BI, weight_OI), expected_BO)


def test_autocast_has_its_own_products(library: bool) -> None:
    x_BI, weight_OI = drawn(64, 48), drawn(20, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x_BI, weight_OI).dtype is torch.bfloat16
