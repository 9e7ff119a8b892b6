"""Labels for the rows and columns of weights: what makes two tensors of two models comparable.

Legend: E experts, O units of a layer, I its inputs.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ple.layers import MLP


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor.

    Attributes:
        name: what its entries are, for people (``experts``).
        labels: of each entry; None = an entry that is always zero.
    """

    name: str
    labels: tuple[Hashable, ...]


# By name within a part: name in the state_dict, and axes.
Tensors = dict[str, tuple[str, tuple[Axis, ...]]]


@dataclass(frozen=True)
class Part:
    """Tensors that are taken over together, or not at all.

    Attributes:
        key: equal in two models for parts that do the same.
        title: the part in words.
        tensors: by name within the part: name in the state_dict, and axes.
    """

    key: Hashable
    title: str
    tensors: Tensors


def low_rank_tensors(place: str, maps: Any, columns: Axis) -> Tensors:
    """Tensors of low-rank maps of the feature vector, whose names begin with ``place``."""
    tensors: Tensors = {}
    rank = units(maps.downs[0].shape[0], "ranks")
    for n in range(maps.maps):
        tensors[f"downs.{n}"] = (f"{place}downs.{n}", (rank, columns))
        tensors[f"ups.{n}"] = (f"{place}ups.{n}", (columns, rank))
    for n in range(len(maps.biases)):
        tensors[f"biases.{n}"] = (f"{place}biases.{n}", (columns,))
    return tensors


def bank_tensors(place: str, bank: Any, inputs: Axis) -> Tensors:
    """Tensors of a bank of experts that reads ``inputs``."""
    experts = Axis("experts", tuple(range(bank.experts)))
    tensors: Tensors = {}
    for index, weight_EOI in enumerate(bank.weights):
        own = units(weight_EOI.shape[1], "units")
        tensors[f"weights.{index}"] = (f"{place}weights.{index}", (experts, own, inputs))
        for kind in ("biases", "norm_scales", "norm_shifts"):
            if len(getattr(bank, kind)):
                tensors[f"{kind}.{index}"] = (f"{place}{kind}.{index}", (experts, own))
        if len(bank.moments):
            for name in ("mean_EO", "variance_EO"):
                where = f"moments.{index}.{name}"
                tensors[where] = (f"{place}{where}", (experts, own))
        inputs = own
    return tensors


def mlp_tensors(place: str, mlp: MLP, inputs: Axis, outputs: Axis) -> Tensors:
    """Tensors of an MLP."""
    tensors: Tensors = {}
    layers = [(f"hidden.{n}", layer) for n, layer in enumerate(mlp.hidden)] + [("out", mlp.out)]
    for name, layer in layers:
        assert isinstance(layer, nn.Linear)
        own = outputs if name == "out" else units(layer.out_features, "units")
        tensors[f"{name}.weight"] = (f"{place}{name}.weight", (own, inputs))
        if layer.bias is not None:
            tensors[f"{name}.bias"] = (f"{place}{name}.bias", (own,))
        inputs = own
    return tensors


def units(count: int, name: str) -> Axis:
    """Units that mean something in a layer of this width only."""
    return Axis(name, tuple((count, i) for i in range(count)))
