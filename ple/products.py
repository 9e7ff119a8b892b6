"""Matrix products of dense layers, by the library that is fastest for them on this machine.

PyTorch hands float32 products on x86 to MKL, which leaves the 512-bit units of other makers'
processors alone; oneDNN, PyTorch's other library, uses them: about twice the speed on an AMD Zen 5,
and more where one side is narrow. Both add in float32.

Shape suffixes: B rows, I input width, O output width.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Below this many multiplications MKL is as fast, and oneDNN prepares code for every new shape.
_LEAST_WORK = 1 << 20


def linear(x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """[B, O]: x Wᵀ + b, with gradients, as ``torch.nn.functional.linear``."""
    if not _by_onednn(x_BI, weight_OI) or torch.is_autocast_enabled(x_BI.device.type):
        return F.linear(x_BI, weight_OI, bias_O)
    result: Tensor = _Linear.apply(x_BI, weight_OI, bias_O)
    return result


def linear_relu(x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """[B, O]: max(0, x Wᵀ + b); for use within an autograd function, it has no gradient."""
    if _by_onednn(x_BI, weight_OI):
        # Not with oneDNN's own ReLU: that makes 0 of NaN, and a bad loss would pass unseen.
        return onednn(x_BI, weight_OI, bias_O).relu_()
    return torch.addmm(bias_O, x_BI, weight_OI.T).relu_()


def product(left_BI: Tensor, right_IO: Tensor) -> Tensor:
    """[B, O]: left right; for use within an autograd function, it has no gradient."""
    if _by_onednn(left_BI, right_IO.T):
        return onednn(left_BI, right_IO.T, None)
    return left_BI @ right_IO


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BI, weight_OI)
        return onednn(x_BI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_BO,) = grads
        x_BI, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(d_BO, weight_OI) if wants_x else None,
            product(d_BO.T, x_BI) if wants_weight else None,
            d_BO.sum(0) if wants_bias else None,
        )


def _by_onednn(x_BI: Tensor, weight_OI: Tensor) -> bool:
    outputs = weight_OI.shape[0]
    return (
        x_BI.dtype is torch.float32
        and x_BI.device.type == "cpu"
        and x_BI.dim() == 2
        and outputs > 1
        and x_BI.numel() * outputs >= _LEAST_WORK
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Whether this machine's processor has 512-bit units and is not of MKL's maker."""
    if not torch.backends.mkldnn.is_available():
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_f")) and "intel" not in str(found.get("cpu_name")).lower()


def onednn(x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """[B, O]: x Wᵀ + b by oneDNN, without a gradient."""
    # A matrix with gaps would go through its reference code, a hundred times slower.
    x_BI, weight_OI = _without_gaps(x_BI), _without_gaps(weight_OI)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x_BI, weight_OI, bias_O, "none", [], "")
    return result


def _without_gaps(matrix: Tensor) -> Tensor:
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()
