"""PLE in plain NumPy float64, one expert at a time, straight from the equations.

Slow and obvious on purpose. Reads weights from a ``state_dict`` by name; uses none of ``ple``.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parameters = Mapping[str, Array]


def parameters_of(module) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def activate(name: str, x: Array) -> Array:
    if name == "relu":
        return np.maximum(x, 0.0)
    if name == "silu":
        return x / (1.0 + np.exp(-x))
    assert name == "gelu"
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift


def expert(p: Parameters, bank: str, e: int, x: Array, activation: str) -> Array:
    layer = 0
    while f"{bank}weights.{layer}" in p:
        x = x @ p[f"{bank}weights.{layer}"][e].T + p[f"{bank}biases.{layer}"][e]
        if f"{bank}norm_scales.{layer}" in p:
            scale, shift = p[f"{bank}norm_scales.{layer}"][e], p[f"{bank}norm_shifts.{layer}"][e]
            x = layer_norm(x, scale, shift)
        x = activate(activation, x)
        layer += 1
    return x


def mlp(p: Parameters, prefix: str, x: Array, activation: str) -> Array:
    layer = 0
    while f"{prefix}hidden.{layer}.weight" in p:
        w, b = p[f"{prefix}hidden.{layer}.weight"], p[f"{prefix}hidden.{layer}.bias"]
        x = activate(activation, x @ w.T + b)
        layer += 1
    return x @ p[f"{prefix}out.weight"].T + p.get(f"{prefix}out.bias", 0.0)


def gate(p: Parameters, prefix: str, selector: Array, experts: int, activation: str) -> Array:
    if experts == 1:
        return np.ones((len(selector), 1))
    return softmax(mlp(p, f"{prefix}logits.", selector, activation))


def gated_sum(weights: Array, outputs: Sequence[Array]) -> Array:
    assert weights.shape[1] == len(outputs)
    return sum(weights[:, [j]] * output for j, output in enumerate(outputs))


def extraction(
    p: Parameters, x: Array, counts: Sequence[tuple[int, tuple[int, ...]]], activation: str
) -> tuple[list[Array], list[list[Array]]]:
    """``counts[l]`` is (m_s, (m_0, m_1, …)) of level l. Task streams and gates of every level."""
    tasks = len(counts[0][1])
    streams, shared_stream = [x] * tasks, x
    gates = []
    for level, (shared_count, own_counts) in enumerate(counts):
        at = f"levels.{level}."
        own = [
            [expert(p, f"{at}experts.task_{k}.", e, streams[k], activation) for e in range(m)]
            for k, m in enumerate(own_counts)
        ]
        shared = [
            expert(p, f"{at}experts.shared.", e, shared_stream, activation)
            for e in range(shared_count)
        ]
        level_gates, new_streams = [], []
        for k in range(tasks):
            pool = own[k] + shared
            level_gates.append(gate(p, f"{at}gates.task_{k}.", streams[k], len(pool), activation))
            new_streams.append(gated_sum(level_gates[k], pool))
        everything = [output for bank in own for output in bank] + shared
        has_shared_gate = any(name.startswith(f"{at}gates.shared.") for name in p)
        if has_shared_gate:
            level_gates.append(
                gate(p, f"{at}gates.shared.", shared_stream, len(everything), activation)
            )
            shared_stream = gated_sum(level_gates[-1], everything)
        elif level < len(counts) - 1 and len(everything) == 1:
            shared_stream = everything[0]
        else:
            # Whoever reads a stream that should not exist gets caught.
            shared_stream = np.full_like(new_streams[0], np.nan)
        streams = new_streams
        gates.append(level_gates)
    return streams, gates


def towers(p: Parameters, streams: Sequence[Array], activation: str) -> Array:
    columns = [mlp(p, f"towers.{k}.", x, activation) for k, x in enumerate(streams)]
    return np.concatenate(columns, axis=1)


def loss(kind: str, z: Array, y: Array) -> Array:
    if kind == "squared_error":
        return (z - y) ** 2
    assert kind == "binary_cross_entropy"
    # log(1 + e^z) - y z, with the exponent kept from overflowing.
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z))) - y * z
