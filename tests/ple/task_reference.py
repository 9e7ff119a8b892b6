"""Losses and predictions of tasks in NumPy float64, from densities and probabilities as they are
defined; exact for moderate outputs. Uses none of ``ple``."""

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]


def sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def softplus(z: Array) -> Array:
    return np.log1p(np.exp(z))


def binary(
    z: Array, y: Array, smoothing: float = 0.0, positive: float = 1.0, gamma: float = 0.0
) -> Array:
    p, y = sigmoid(z), (1 - smoothing) * y + smoothing / 2
    return -positive * y * (1 - p) ** gamma * np.log(p) - (1 - y) * p**gamma * np.log(1 - p)


def squared(z: Array, y: Array) -> Array:
    return (z - y) ** 2


def huber(z: Array, y: Array, delta: float) -> Array:
    return special.huber(delta, z - y)


def pinball(z: Array, y: Array, q: float) -> Array:
    return np.where(y > z, q * (y - z), (1 - q) * (z - y))


def log_normal(s: Array, mean: Array):
    return stats.lognorm(s=softplus(s) + 1e-3, scale=np.exp(mean))


def ziln(z: Array, mean: Array, s: Array, y: Array) -> Array:
    p = sigmoid(z)
    density = log_normal(s, mean).logpdf(np.where(y > 0, y, 1.0))
    return -np.where(y > 0, np.log(p) + density, np.log(1 - p))


def ziln_mean(z: Array, mean: Array, s: Array) -> Array:
    return sigmoid(z) * log_normal(s, mean).mean()


def levels(outputs: Array, first: int) -> tuple[Array, Array]:
    """The levels [K] and their probabilities [N, K], by differences of cumulative ones."""
    links = np.cumsum(np.column_stack([outputs[:, :1], -softplus(outputs[:, 1:])]), axis=1)
    at_least = np.column_stack(
        [np.ones(len(outputs)), stats.logistic.cdf(links), np.zeros(len(outputs))]
    )
    return first + np.arange(outputs.shape[1] + 1), at_least[:, :-1] - at_least[:, 1:]
