"""What happens to a feature vector before level 1: crosses of features, and gates on features.

Shape suffixes: B rows, D width of the feature vector, R rank.
"""

import torch
from torch import Tensor, nn

from ple.layers import MLP, init_output
from ple.products import linear


class _LowRank(nn.Module):
    """Maps x ↦ U Vᵀ x (+ b), several of one shape; columns that are always zero have weight zero.

    Args:
        width: D, of input and output.
        maps: how many, at least 1.
        rank: R, at least 1.
        fan_in: columns that carry a signal, the first ones.
        bias: with b.
    """

    def __init__(self, width: int, maps: int, rank: int, fan_in: int, bias: bool) -> None:
        super().__init__()
        self.maps, self._fan_in = maps, fan_in
        self.downs = nn.ParameterList(torch.empty(rank, width) for _ in range(maps))
        self.ups = nn.ParameterList(torch.empty(width, rank) for _ in range(maps))
        self.biases = nn.ParameterList(torch.empty(width) for _ in range(maps if bias else 0))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new weights; rows and columns of the spare columns are zero, and stay so."""
        for down_RD, up_DR in zip(self.downs, self.ups, strict=True):
            init_output(down_RD, self._fan_in)
            init_output(up_DR, up_DR.shape[1])
            up_DR[self._fan_in :] = 0.0
        for bias_D in self.biases:
            bias_D.zero_()

    def flops_per_row(self) -> int:
        """Two per weight that a signal reaches."""
        return self.maps * 4 * self._fan_in * self.downs[0].shape[0]

    def spare_weights(self) -> int:
        """Weights and biases of columns that are always zero."""
        rank, width = self.downs[0].shape
        return (width - self._fan_in) * (2 * rank * self.maps + len(self.biases))

    def forward(self, number: int, x_BD: Tensor) -> Tensor:
        """[B, D] to [B, D] by one of the maps."""
        bias_D = self.biases[number] if len(self.biases) else None
        return linear(linear(x_BD, self.downs[number]), self.ups[number], bias_D)


class LowRankCross(nn.Module):
    """DCN-v2 cross layers with low-rank weights.

    x_{l+1} = x_0 ⊙ (U_l V_lᵀ x_l + b_l) + x_l (R. Wang et al., WWW 2021, arXiv 2008.13535, the
    cross layer and its low-rank form). Columns where x_0 is zero stay zero.

    Args:
        width: D.
        layers: number of cross layers, at least 1.
        rank: R, at least 1.
        fan_in: columns that carry a signal, the first ones; absent = all.
    """

    def __init__(self, width: int, layers: int, rank: int, fan_in: int | None = None) -> None:
        super().__init__()
        if layers < 1 or rank < 1:
            raise ValueError(f"interaction: layers ({layers}) and rank ({rank}) must be at least 1")
        fan_in = width if fan_in is None else fan_in
        self.layers = _LowRank(width, layers, rank, fan_in, bias=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, D] to [B, D]."""
        crossed_BD = x_BD
        for layer in range(self.layers.maps):
            mapped_BD = self.layers(layer, crossed_BD)
            crossed_BD = torch.addcmul(crossed_BD, x_BD, mapped_BD)
        return crossed_BD


class FeatureGate(nn.Module):
    """A reader's own view of a vector: each column scaled by a factor between 0 and 2.

    v ⊙ Σ_i g_i(v) · 2σ(v B_i A_i), with B_i [D, R], A_i [R, D] and g = softmax(v W) over the i
    (HoME, X. Wang et al., arXiv 2408.05430, the feature-gate). Independent implementations agree
    on the low-rank maps and, those that mix several, on the softmax; some leave out the 2, or take
    the sigmoid after the mixture. Which the paper has was not verified.

    Args:
        width: D.
        factors: how many low-rank maps are mixed, at least 1.
        rank: R, at least 1.
        fan_in: columns that carry a signal, the first ones; absent = all.
    """

    def __init__(self, width: int, factors: int, rank: int, fan_in: int | None = None) -> None:
        super().__init__()
        if factors < 1 or rank < 1:
            raise ValueError(
                f"feature gate: factors ({factors}) and rank ({rank}) must be at least 1"
            )
        fan_in = width if fan_in is None else fan_in
        self.factors = _LowRank(width, factors, rank, fan_in, bias=False)
        self.gate = MLP(width, (), factors, out_bias=False, fan_in=fan_in) if factors > 1 else None

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, D] to [B, D]."""
        count = self.factors.maps
        scales = [2 * torch.sigmoid(self.factors(i, x_BD)) for i in range(count)]
        if self.gate is None:
            return x_BD * scales[0]
        weights_BF = torch.softmax(self.gate(x_BD), dim=1)
        scale_BD = weights_BF[:, :1] * scales[0]
        for i in range(1, count):
            scale_BD = torch.addcmul(scale_BD, weights_BF[:, i : i + 1], scales[i])
        return x_BD * scale_BD
