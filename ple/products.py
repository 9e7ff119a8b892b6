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
    """[B, O]: x Wᵀ + b, with gradients, as ``torch.nn.functional.linear``.

    On a CPU an input that lies column by column gives an output that does, too.
    """
    if torch.is_autocast_enabled(x_BI.device.type):
        return F.linear(x_BI, weight_OI, bias_O)
    if not by_columns(x_BI) and not _by_onednn(x_BI, weight_OI):
        return F.linear(x_BI, weight_OI, bias_O)
    result: Tensor = _Linear.apply(x_BI, weight_OI, bias_O)
    return result


def by_columns(x_BI: Tensor) -> bool:
    """Whether a matrix on a CPU lies column by column, as experts give their outputs there."""
    turned = x_BI.dim() == 2 and x_BI.T.is_contiguous() and not x_BI.is_contiguous()
    return turned and x_BI.device.type == "cpu"


def product(left_BI: Tensor, right_IO: Tensor) -> Tensor:
    """[B, O]: left right; for use within an autograd function, it has no gradient."""
    right_OI = right_IO.T
    if _by_onednn(left_BI, right_OI):
        return onednn(left_BI, right_OI, None)
    return left_BI @ right_IO


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BI, weight_OI)
        if not by_columns(x_BI):
            return onednn(x_BI, weight_OI, bias_O)
        out_OB = product(weight_OI, x_BI.T)
        if bias_O is not None:
            out_OB.add_(bias_O.unsqueeze(1))
        # As a tensor of its own, not a view: an activation may overwrite it.
        shape, strides = out_OB.T.shape, out_OB.T.stride()
        return out_OB.new_empty(0).set_(out_OB.untyped_storage(), 0, shape, strides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_BO,) = grads
        x_BI, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_OB = d_BO.T.contiguous() if by_columns(x_BI) else d_BO.T
        dx_BI = None
        if wants_x:
            dx_BI = product(weight_OI.T, d_OB).T if by_columns(x_BI) else product(d_BO, weight_OI)
        return (
            dx_BI,
            product(d_OB, x_BI) if wants_weight else None,
            d_OB.sum(1) if wants_bias else None,
        )


def _by_onednn(x_BI: Tensor, weight_OI: Tensor) -> bool:
    if x_BI.dtype is not torch.float32 or x_BI.dim() != 2 or x_BI.device.type != "cpu":
        return False
    outputs = weight_OI.shape[0]
    return outputs > 1 and x_BI.numel() * outputs >= _LEAST_WORK and onednn_is_faster()


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
