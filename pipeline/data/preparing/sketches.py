"""Summaries of a stream of numbers that take fixed memory: moments and a uniform sample."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Moments:
    """Count, mean and population deviation, merged batch by batch.

    Chan, Golub, LeVeque (1979): M2 = M2_a + M2_b + δ²·n_a·n_b/n, which loses no digits where the
    sum of squares would.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def update(self, values: Floats) -> None:
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        count = self.count + len(values)
        delta = mean - self.mean
        self._squares += squares + delta * delta * self.count * len(values) / count
        self.mean += delta * len(values) / count
        self.count = count

    @property
    def std(self) -> float:
        return float(np.sqrt(self._squares / self.count)) if self.count else 0.0


class UniformSample:
    """A uniform sample without replacement of a stream: the `size` values of lowest random rank.

    Ranks come from a fixed seed, one per value in order, so the sample depends on the stream only
    and not on how it was cut into batches. The rank error of a quantile q has the standard
    deviation √(q(1-q)/size): 0.1 % at the median for 262,144; zero while everything fits.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)
        self._threshold = 1.0
        self._ranks: list[Floats] = []
        self._values: list[Floats] = []
        self._kept = 0

    def update(self, values: Floats) -> None:
        ranks = self._random.random(len(values))
        if self._threshold < 1.0:
            chosen = ranks < self._threshold
            ranks, values = ranks[chosen], values[chosen]
        self._ranks.append(ranks)
        self._values.append(values)
        self._kept += len(values)
        if self._kept >= 2 * self._size:
            self._shrink()

    def quantiles(self, parts: int) -> Floats:
        """`parts` + 1 values that cut the sample into equal parts (linear interpolation)."""
        self._shrink()
        return np.quantile(self._values[0], np.arange(parts + 1) / parts)

    @property
    def values(self) -> Floats:
        """The sample, in no order of meaning."""
        self._shrink()
        return self._values[0]

    def _shrink(self) -> None:
        ranks, values = np.concatenate(self._ranks), np.concatenate(self._values)
        if len(ranks) > self._size:
            lowest = np.argpartition(ranks, self._size - 1)[: self._size]
            ranks, values = ranks[lowest], values[lowest]
            self._threshold = float(ranks.max())
        self._ranks, self._values, self._kept = [ranks], [values], len(values)
