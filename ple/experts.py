"""Expert banks and gates: the parts every architecture of the multi-task family is made of.

Shape suffixes: B rows, E experts, I input width, O output width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.layers import (
    MLP,
    NORMALIZATIONS,
    activation_function,
    check_dropout,
    check_widths,
    init_hidden,
)


class ExpertBank(nn.Module):
    """Independent MLPs of the same shape that read the same input.

    Every layer of an expert is linear, then (option) LayerNorm, activation, dropout. The weights of
    all experts are stacked per layer, ``weights[i]`` being [E, O, I], so that the looped form (CPU)
    and the batched form (GPU) are two ways to use the same parameters.

    Args:
        experts: E, at least 1.
        in_width: I, width of the input.
        hidden: widths of an expert's layers; the last is the width of its output.
        activation: name in :data:`ple.layers.ACTIVATIONS`.
        normalization: ``"none"`` or ``"layer"`` (LayerNorm over an expert's own units).
        dropout: rate after each activation.
        fan_in: input columns that carry a signal, the first ones; absent = all.
    """

    def __init__(
        self,
        experts: int,
        in_width: int,
        hidden: Sequence[int],
        activation: str = "relu",
        normalization: str = "none",
        dropout: float = 0.0,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(f"an expert bank needs at least one expert, not {experts}")
        if not hidden:
            raise ValueError("an expert needs at least one layer; give `hidden` a width")
        check_widths("hidden", hidden)
        check_dropout("dropout", dropout)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization {normalization!r} is unknown; "
                f"choose one of {', '.join(NORMALIZATIONS)}"
            )
        self.experts, self.in_width, self.out_width = experts, in_width, hidden[-1]
        self.activation = activation_function(activation)
        self.normalization = normalization
        self.dropout = dropout
        self.fan_in = in_width if fan_in is None else fan_in
        widths = [in_width, *hidden]
        self.weights = nn.ParameterList(
            torch.empty(experts, o, i) for i, o in zip(widths[:-1], widths[1:], strict=True)
        )
        self.biases = nn.ParameterList(torch.empty(experts, o) for o in hidden)
        if normalization == "layer":
            self.scales = nn.ParameterList(torch.empty(experts, o) for o in hidden)
            self.shifts = nn.ParameterList(torch.empty(experts, o) for o in hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every expert's weights independently; biases zero, LayerNorm the identity."""
        for index, weight in enumerate(self.weights):
            init_hidden(weight, self.fan_in if index == 0 else weight.shape[2])
            nn.init.zeros_(self.biases[index])
            if self.normalization == "layer":
                nn.init.ones_(self.scales[index])
                nn.init.zeros_(self.shifts[index])

    def forward(self, x_BI: Tensor) -> Tensor:
        """[B, I] to [B, E, O]: row b through every expert."""
        first = F.linear(x_BI, self.weights[0].flatten(0, 1), self.biases[0].flatten())
        h_BEO = self._finish(0, first.unflatten(1, (self.experts, -1)))
        for index in range(1, len(self.weights)):
            weight_EOI, bias_EO = self.weights[index], self.biases[index]
            h_EBO = torch.baddbmm(
                bias_EO.unsqueeze(1), h_BEO.transpose(0, 1), weight_EOI.transpose(1, 2)
            )
            h_BEO = self._finish(index, h_EBO.transpose(0, 1))
        return h_BEO

    def _finish(self, index: int, h_BEO: Tensor) -> Tensor:
        if self.normalization == "layer":
            h_BEO = F.layer_norm(h_BEO, h_BEO.shape[2:]) * self.scales[index] + self.shifts[index]
        h_BEO = self.activation(h_BEO)
        return F.dropout(h_BEO, self.dropout, self.training) if self.dropout else h_BEO


class Gate(nn.Module):
    """Softmax weights over experts, from a selector (PLE paper, equation 6).

    With one expert there is nothing to choose: the weight is 1 and the gate has no parameters.

    Args:
        in_width: I, width of the selector.
        experts: E, experts the gate mixes.
        hidden: widths of hidden layers between selector and softmax; empty for a linear gate.
        bias: bias in the last layer.
        activation: of the hidden layers.
        fan_in: selector columns that carry a signal, the first ones; absent = all.
    """

    def __init__(
        self,
        in_width: int,
        experts: int,
        hidden: Sequence[int] = (),
        bias: bool = False,
        activation: str = "relu",
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(f"a gate needs at least one expert, not {experts}")
        self.logits = (
            MLP(in_width, hidden, experts, activation, out_bias=bias, fan_in=fan_in)
            if experts > 1
            else None
        )

    def forward(self, selector_BI: Tensor) -> Tensor:
        """[B, I] to [B, E], rows summing to 1."""
        if self.logits is None:
            return selector_BI.new_ones(len(selector_BI), 1)
        return torch.softmax(self.logits(selector_BI), dim=1)


def mix(gate_BE: Tensor, experts_BEO: Tensor) -> Tensor:
    """The gated sum of experts, [B, O] (PLE paper, equation 5)."""
    return torch.bmm(gate_BE.unsqueeze(1), experts_BEO).squeeze(1)
