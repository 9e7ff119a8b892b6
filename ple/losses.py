"""Element-wise losses of the tasks, each with the outputs of the tower it needs and what is
predicted from them.

Every loss takes the outputs of a tower apart, as a tuple of tensors of the labels' shape, so that
one call serves one task or several. Values and gradients are finite in float32 wherever they can be
represented.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# exp of this is the largest value that ZILN predicts: near the end of float32.
_LARGEST_EXPONENT = 80.0
# A deviation of almost nothing would let the density of one value outweigh all else (ZILN). Added,
# not a bound, beyond which no gradient would lead back.
_SMALLEST_DEVIATION = 1e-3


class Loss(Protocol):
    """What :class:`ple.heads.Heads` needs of a loss.

    Attributes:
        outputs: how many outputs the task's tower has.
        is_binary: whether the prediction is a logit.
    """

    @property
    def outputs(self) -> int: ...

    @property
    def is_binary(self) -> bool: ...

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of each label, in the labels' shape."""

    def prediction(self, outputs: Sequence[Tensor]) -> Tensor:
        """The logit of a binary task, the predicted value of others."""


@dataclass(frozen=True)
class _OneOutput:
    """A loss of one output, which is the prediction."""

    @property
    def outputs(self) -> int:
        return 1

    @property
    def is_binary(self) -> bool:
        return False

    def prediction(self, outputs: Sequence[Tensor]) -> Tensor:
        (z,) = outputs
        return z


@dataclass(frozen=True)
class BinaryCrossEntropy(_OneOutput):
    """-c·y'·(1-p)^γ·log p - (1-y')·p^γ·log(1-p) with p = σ(z) and y' = (1-s)·y + s/2.

    Args:
        label_smoothing: s, see C. Szegedy et al., CVPR 2016, section 7, with two classes.
        positive_weight: c, weight of the positive class.
        focal_gamma: γ, see T.-Y. Lin et al., ICCV 2017, equation 4; 0 = plain cross-entropy.
    """

    label_smoothing: float = 0.0
    positive_weight: float = 1.0
    focal_gamma: float = 0.0

    @property
    def is_binary(self) -> bool:
        return True

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        (z,) = outputs
        if self.label_smoothing:
            labels = (1.0 - self.label_smoothing) * labels + 0.5 * self.label_smoothing
        if self.positive_weight == 1.0 and not self.focal_gamma:
            return F.binary_cross_entropy_with_logits(z, labels, reduction="none")
        log_p, log_q = F.logsigmoid(z), F.logsigmoid(-z)
        positive, negative = self.positive_weight * labels * log_p, (1.0 - labels) * log_q
        if self.focal_gamma:
            # Powers by way of the logarithm: their derivative stays finite where p is 0 or 1.
            positive = positive * torch.exp(self.focal_gamma * log_q)
            negative = negative * torch.exp(self.focal_gamma * log_p)
        return -(positive + negative)


@dataclass(frozen=True)
class SquaredError(_OneOutput):
    """(z - y)²; the prediction estimates the mean."""

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        (z,) = outputs
        return torch.square(z - labels)


@dataclass(frozen=True)
class Huber(_OneOutput):
    """(z - y)² / 2 up to ``delta``, δ·(|z - y| - δ/2) beyond (P. Huber, 1964)."""

    delta: float = 1.0

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        (z,) = outputs
        return F.huber_loss(z, labels, reduction="none", delta=self.delta)


@dataclass(frozen=True)
class Quantile(_OneOutput):
    """q·(y - z) where y > z, (1 - q)·(z - y) elsewhere: the pinball loss (R. Koenker and G.
    Bassett, 1978). The prediction estimates the ``quantile`` q of the label."""

    quantile: float

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        (z,) = outputs
        missing = labels - z
        return torch.maximum(self.quantile * missing, (self.quantile - 1.0) * missing)


@dataclass(frozen=True)
class ZeroInflatedLogNormal:
    """-log density of a label that is 0 with probability 1 - p and log-normal otherwise (X. Wang
    et al., arXiv 1912.07753, section 3): outputs z with p = σ(z), μ, and s with deviation
    softplus(s) + 0.001. The prediction is the mean p·exp(μ + σ²/2).
    """

    @property
    def outputs(self) -> int:
        return 3

    @property
    def is_binary(self) -> bool:
        return False

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        z, mean, s = outputs
        deviation = _deviation(s)
        positive = labels > 0
        # Where there is no logarithm a stand-in keeps NaN out of the gradient.
        logs = torch.log(torch.where(positive, labels, 1.0))
        density = (
            torch.square((logs - mean) / deviation) / 2
            + torch.log(deviation)
            + logs
            + 0.5 * math.log(2 * math.pi)
        )
        chance = F.binary_cross_entropy_with_logits(z, positive.to(z.dtype), reduction="none")
        return chance + torch.where(positive, density, 0.0)

    def prediction(self, outputs: Sequence[Tensor]) -> Tensor:
        z, mean, s = outputs
        exponent = F.logsigmoid(z) + mean + torch.square(_deviation(s)) / 2
        return torch.exp(exponent.clamp(max=_LARGEST_EXPONENT))


def _deviation(s: Tensor) -> Tensor:
    return F.softplus(s) + _SMALLEST_DEVIATION


@dataclass(frozen=True)
class Ordinal:
    """-log P(y) of levels first … last in the cumulative link model (P. McCullagh, 1980):
    P(y ≥ first + j) = σ(a_j), where a_1 = o_1 and a_j = a_{j-1} - softplus(o_j), so that the
    cumulative probabilities cannot cross. The prediction is the expected level.

    Log-likelihood rather than the sum of binary losses of CORAL (W. Cao et al., arXiv 1901.07884),
    from log(σ(a) - σ(a')) = log σ(a) + log σ(-a') + log σ(o) for a' = a - softplus(o).
    """

    first: int
    last: int

    @property
    def outputs(self) -> int:
        return self.last - self.first

    @property
    def is_binary(self) -> bool:
        return False

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        links = _links(outputs)
        level = labels - self.first
        total = torch.zeros_like(links[0])
        for j, a in enumerate(links):
            # Level j lies below link j+1 (counted from 1), level j+1 above it.
            total = total + torch.where(level == j, F.logsigmoid(-a), 0.0)
            total = total + torch.where(level == j + 1, F.logsigmoid(a), 0.0)
            if j + 1 < len(links):
                step = F.logsigmoid(outputs[j + 1])
                total = total + torch.where(level == j + 1, step, 0.0)
        return -total

    def prediction(self, outputs: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.sigmoid(a) for a in _links(outputs)]).sum(0) + self.first


def _links(outputs: Sequence[Tensor]) -> list[Tensor]:
    links = [outputs[0]]
    for step in outputs[1:]:
        links.append(links[-1] - F.softplus(step))
    return links
