"""Small parts shared by experts, gates and towers: activations, initialisation, a plain MLP.

Shape suffixes: B rows, I input width, O output width.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.column_mlp import column_mlp
from ple.products import by_columns, linear

# One may overwrite its argument (ReLU does: one pass over memory less), so hand it a fresh tensor.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "silu": F.silu,
    "gelu": F.gelu,
}
NORMALIZATIONS = ("none", "layer", "batch")


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The element-wise function called ``name``. Raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_dropout(name: str, rate: float) -> None:
    """Raises ValueError unless ``0 <= rate < 1``."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, not {rate}")


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Raises ValueError unless every width is at least 1."""
    if any(width < 1 for width in widths):
        raise ValueError(f"{name} must hold widths of at least 1, not {tuple(widths)}")


@torch.no_grad()
def init_hidden(weight: Tensor, fan_in: int) -> None:
    """He initialisation (uniform, variance 2 / fan_in) of a layer followed by a ReLU-like function.

    Args:
        weight: [..., O, I]; columns from ``fan_in`` on belong to inputs that are always zero and
            are set to zero, so that they count neither in the variance nor in any norm.
        fan_in: inputs that carry a signal.
    """
    bound = math.sqrt(6.0 / fan_in)
    weight.zero_()
    weight[..., :fan_in].uniform_(-bound, bound)


@torch.no_grad()
def init_output(weight: Tensor, fan_in: int) -> None:
    """Uniform, variance 1 / (3 fan_in): gates and scores start near even, but not equal.

    ``weight`` and ``fan_in`` as in :func:`init_hidden`.
    """
    bound = math.sqrt(1.0 / fan_in)
    weight.zero_()
    weight[..., :fan_in].uniform_(-bound, bound)


class Linear(nn.Linear):
    """``torch.nn.Linear`` by the product that is fastest here."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class MLP(nn.Module):
    """Hidden layers with an activation after each, then one linear layer without.

    Args:
        in_width: I, width of the input.
        hidden: widths of the hidden layers; empty for a linear map.
        out_width: O, width of the output.
        activation: name in :data:`ACTIVATIONS`.
        dropout: rate after each hidden activation.
        out_bias: bias in the last layer.
        fan_in: input columns that carry a signal, the first ones; absent = all.
    """

    def __init__(
        self,
        in_width: int,
        hidden: Sequence[int],
        out_width: int,
        activation: str = "relu",
        dropout: float = 0.0,
        out_bias: bool = True,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        check_widths("hidden", hidden)
        check_dropout("dropout", dropout)
        self.activation = activation_function(activation)
        self.dropout = dropout
        widths = [in_width, *hidden]
        self.hidden = nn.ModuleList(Linear(i, o) for i, o in pairwise(widths))
        self.out = Linear(widths[-1], out_width, bias=out_bias)
        self.fan_in = in_width if fan_in is None else fan_in
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights from PyTorch's global generator; biases start at zero."""
        layers: list[nn.Linear] = [*self.hidden, self.out]
        for index, layer in enumerate(layers):
            fan_in = self.fan_in if index == 0 else layer.in_features
            (init_output if layer is self.out else init_hidden)(layer.weight, fan_in)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def flops_per_row(self) -> int:
        """Two per weight that a signal reaches."""
        return 2 * (self.weight_count() - self.spare_weights())

    def weight_count(self) -> int:
        """Weights of the matrices, biases apart."""
        return sum(layer.weight.numel() for layer in (*self.hidden, self.out))

    def spare_weights(self) -> int:
        """Weights on input columns that are always zero."""
        first: nn.Linear = [*self.hidden, self.out][0]
        return (first.in_features - self.fan_in) * first.out_features

    def forward(self, x_BI: Tensor) -> Tensor:
        """[B, I] to [B, O]; an input by columns goes past the layers' own ``forward``."""
        plain = self.activation is torch.relu_ and not (self.dropout and self.training)
        if plain and by_columns(x_BI) and not torch.is_autocast_enabled(x_BI.device.type):
            layers: list[nn.Linear] = [*self.hidden, self.out]
            return column_mlp(x_BI, [(layer.weight, layer.bias) for layer in layers])
        return self.out(self.body(x_BI))

    def body(self, x_BI: Tensor) -> Tensor:
        """[B, I] to the last hidden layer; the input itself where there is none."""
        for layer in self.hidden:
            x_BI = self.activation(layer(x_BI))
            if self.dropout:
                x_BI = F.dropout(x_BI, self.dropout, self.training)
        return x_BI
