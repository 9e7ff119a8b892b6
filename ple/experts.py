"""Expert banks: independent MLPs with stacked weights, in a form for CPUs and one for GPUs.

Shape suffixes: B rows, E experts, I input width, O output width.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.batch_moments import BatchMoments
from ple.expert_blocks import BankLayers
from ple.layers import (
    NORMALIZATIONS,
    activation_function,
    check_dropout,
    check_widths,
    init_hidden,
)
from ple.products import linear


class ExpertBank(nn.Module):
    """Independent MLPs of the same shape that read the same input.

    Every layer of an expert is linear, then (option) normalisation, activation, dropout. The
    weights of all experts are stacked per layer, ``weights[i]`` being [E, O, I], so the looped form
    (fastest on CPUs) and the batched form (few launches, for GPUs) use the same parameters. Both
    run the first layer of all experts as one matrix product, because they read the same input.

    Args:
        experts: E; a bank of none has no parameters and gives no outputs.
        in_width: I, width of the input.
        hidden: widths of an expert's layers; the last is the width of its output.
        activation: name in :data:`ple.layers.ACTIVATIONS`.
        normalization: ``"none"``, ``"layer"`` (LayerNorm over an expert's own units) or ``"batch"``
            (BatchNorm, see :mod:`ple.batch_moments`; its layers have no bias but the norm's).
        dropout: rate after each activation.
        fan_in: input columns that carry a signal, the first ones; absent = all.

    Attributes:
        watch: if set, told of activations: (layer, expert, [B, O]), or of all experts at once as
            (layer, None, [B, E, O]).

    Raises:
        ValueError: an option is out of range.
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
        if experts < 0:
            raise ValueError(f"experts must be 0 or more, not {experts}")
        if not hidden:
            raise ValueError("an expert needs at least one layer; give `hidden` a width")
        check_widths("hidden", hidden)
        check_dropout("dropout", dropout)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization {normalization!r} is unknown; "
                f"choose one of {', '.join(NORMALIZATIONS)}"
            )
        self.experts, self.out_width = experts, hidden[-1]
        self.activation = activation_function(activation)
        self.dropout = dropout
        self.watch: Callable[[int, int | None, Tensor], None] | None = None
        self.fan_in = in_width if fan_in is None else fan_in
        shapes = list(pairwise([in_width, *hidden])) if experts else []
        normalized = shapes if normalization != "none" else []
        self.weights = nn.ParameterList(torch.empty(experts, o, i) for i, o in shapes)
        # Batch statistics would take a bias away again.
        biased = shapes if normalization != "batch" else []
        self.biases = nn.ParameterList(torch.empty(experts, o) for _, o in biased)
        self.norm_scales = nn.ParameterList(torch.empty(experts, o) for _, o in normalized)
        self.norm_shifts = nn.ParameterList(torch.empty(experts, o) for _, o in normalized)
        batched = shapes if normalization == "batch" else []
        self.moments = nn.ModuleList(BatchMoments((experts, o)) for _, o in batched)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every expert's weights independently; biases zero, normalisation the identity."""
        for index, weight_EOI in enumerate(self.weights):
            init_hidden(weight_EOI, self.fan_in if index == 0 else weight_EOI.shape[2])
        for parameter in (*self.biases, *self.norm_shifts):
            nn.init.zeros_(parameter)
        for parameter in self.norm_scales:
            nn.init.ones_(parameter)

    def flops_per_row(self) -> int:
        """Two per weight that a signal reaches."""
        return 2 * (sum(weight.numel() for weight in self.weights) - self.spare_weights())

    def spare_weights(self) -> int:
        """Weights on input columns that are always zero."""
        if not self.experts:
            return 0
        _, outputs, inputs = self.weights[0].shape
        return self.experts * outputs * (inputs - self.fan_in)

    def relu_layers(self) -> BankLayers | None:
        """Weights and biases by layer, if an expert is nothing but linear layers with a ReLU after
        each, and nobody watches; else None."""
        plain = self.activation is torch.relu_ and not self.norm_scales and self.watch is None
        if not plain or (self.dropout and self.training):
            return None
        return list(zip(self.weights, self.biases, strict=True))

    def looped(self, x_BI: Tensor, real_B: Tensor | None = None) -> list[Tensor]:
        """One [B, O] per expert, by one matrix product per expert and layer.

        ``real_B`` marks the rows that enter batch statistics; absent = all.
        """
        if not self.experts:
            return []
        outputs = list(self._first_layer(x_BI, real_B).unbind(1))
        for index in range(1, len(self.weights)):
            weights = self.weights[index].unbind()
            if self.moments:
                hidden = [linear(h, weight) for h, weight in zip(outputs, weights, strict=True)]
                normal_BEO = self._normalize(index, torch.stack(hidden, 1), real_B)
                outputs = list(self._activate(normal_BEO, index).unbind(1))
                continue
            biases = self.biases[index].unbind()
            # Expert by expert to the end of the layer, while its values are in the cache.
            for expert, h_BI in enumerate(outputs):
                h_BO = linear(h_BI, weights[expert], biases[expert])
                if self.norm_scales:
                    scale_O = self.norm_scales[index][expert]
                    shift_O = self.norm_shifts[index][expert]
                    h_BO = F.layer_norm(h_BO, h_BO.shape[1:], scale_O, shift_O)
                outputs[expert] = self._activate(h_BO, index, expert)
        return outputs

    def batched(self, x_BI: Tensor, real_B: Tensor | None = None) -> Tensor:
        """[B, E, O], by one batched matrix product per layer; ``real_B`` as in :meth:`looped`."""
        if not self.experts:
            return x_BI.new_empty(len(x_BI), 0, self.out_width)
        h_BEO = self._first_layer(x_BI, real_B)
        for index in range(1, len(self.weights)):
            weight_EIO = self.weights[index].transpose(1, 2)
            h_EBI = h_BEO.transpose(0, 1)
            if self.moments:
                h_EBO = torch.bmm(h_EBI, weight_EIO)
            else:
                h_EBO = torch.baddbmm(self.biases[index].unsqueeze(1), h_EBI, weight_EIO)
            h_BEO = self._activate(self._normalize(index, h_EBO.transpose(0, 1), real_B), index)
        return h_BEO

    def _first_layer(self, x_BI: Tensor, real_B: Tensor | None) -> Tensor:
        bias_O = None if self.moments else self.biases[0].flatten()
        h_BO = linear(x_BI, self.weights[0].flatten(0, 1), bias_O)
        h_BEO = h_BO.unflatten(1, (self.experts, -1))
        return self._activate(self._normalize(0, h_BEO, real_B), 0)

    def _normalize(self, index: int, h_BEO: Tensor, real_B: Tensor | None) -> Tensor:
        if not self.norm_scales:
            return h_BEO
        if self.moments:
            normal_BEO = self.moments[index](h_BEO, real_B)
        else:
            normal_BEO = F.layer_norm(h_BEO, h_BEO.shape[2:])
        return normal_BEO * self.norm_scales[index] + self.norm_shifts[index]

    def _activate(self, h: Tensor, layer: int, expert: int | None = None) -> Tensor:
        h = self.activation(h)
        if self.watch is not None:
            self.watch(layer, expert, h)
        return F.dropout(h, self.dropout, self.training) if self.dropout else h
