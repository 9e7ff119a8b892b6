"""AUC and average precision from the weights of both classes by score.

AUC is the Mann-Whitney statistic with ties counted half (Hanley and McNeil, 1982). Average
precision is Σ_n (R_n − R_{n−1})·P_n over thresholds from the highest score down, equal scores
passing together (as scikit-learn's).

Up to EXACT_ROWS rows are kept as they are and ranked exactly. Beyond that both come from a
histogram of logits, uniform in logit up to ±16 and logarithmic from there to ±2^20; logits in one
bin count as tied. Equal logits always share a bin, so ties and constant predictors are exact in
both forms.

With BINS bins, of width h = 3.8e-5 in the linear part, the error of AUC is
Σ_b P_b·N_b·(1/2 − AUC_b) / (P·N) over bins of P_b positives and N_b negatives: at most half the
share of pairs that share a bin, 0.14·h/s for normal logits of deviation s, 5e-6 at s = 1. In truth
the order within a bin is close to a coin toss, and what is left is noise of about 0.08·h/(s·√P) for
P positives: 2e-7 for s = 1 and P = 200; measured at most 1e-6 down to s = 0.02. Only logits that
hardly vary (s < 0.005 over more than EXACT_ROWS rows) can exceed 1e-5: 9e-5 was seen at s = 0.001.

Average precision of a histogram is a little low, because rows of one bin pass together and the top
of the ranking counts most: by less than 1e-5 for s ≥ 0.3, and by 1e-4 at s = 0.02.

B rows of a batch, G groups of rows, K bins or distinct scores.
"""

import torch
from torch import Tensor

BINS = 2**20

_LINEAR = 16.0  # logits up to here have bins of equal width
_OCTAVE = 0.25  # room of each doubling beyond, in units of the linear part
_OCTAVES = 16.0  # doublings before everything is one bin
_HALF_RANGE = _LINEAR + _OCTAVE * _OCTAVES


def bin_of(logits_B: Tensor, bins: int = BINS) -> Tensor:
    """Bin number of each logit (float64, finite), non-decreasing in the logit."""
    size_B = logits_B.abs()
    tail_B = (size_B.clamp(min=_LINEAR) / _LINEAR).log2() * _OCTAVE
    place_B = torch.copysign(size_B.clamp(max=_LINEAR) + tail_B, logits_B)
    place_B = (place_B + _HALF_RANGE) * (bins / (2 * _HALF_RANGE))
    return place_B.long().clamp_(0, bins - 1)


class LogitHistograms:
    """Weights of negatives and positives by logit, for each task and group of rows.

    Args:
        tasks: number of binary tasks.
        groups: G.
        bins: K.
    """

    def __init__(self, tasks: int, groups: int, bins: int, device: torch.device | str) -> None:
        self.bins = bins
        self.weights = torch.zeros(tasks, groups * 2 * bins, dtype=torch.float64, device=device)
        self._shape = (groups, 2, bins)

    def add(
        self,
        task: int,
        logits_B: Tensor,
        labels_B: Tensor,
        weights_B: Tensor,
        group_B: Tensor | int,
    ) -> None:
        """Adds a batch's rows of one task; rows that do not count weigh nothing."""
        negative_B = bin_of(logits_B, self.bins) + group_B * (2 * self.bins)
        self.weights[task].index_add_(0, negative_B, weights_B * (1.0 - labels_B))
        self.weights[task].index_add_(0, negative_B + self.bins, weights_B * labels_B)

    def of(self, task: int, group: int) -> tuple[Tensor, Tensor]:
        """(negatives_K, positives_K), from the lowest logit up."""
        both_2K = self.weights[task].view(self._shape)[group]
        return both_2K[0], both_2K[1]


def classes_by_score(
    scores_N: Tensor, labels_N: Tensor, weights_N: Tensor
) -> tuple[Tensor, Tensor]:
    """(negatives_K, positives_K) of the distinct scores, ascending."""
    distinct_K, which_N = torch.unique(scores_N, return_inverse=True)
    both_2K = torch.zeros(2, distinct_K.numel(), dtype=torch.float64, device=scores_N.device)
    both_2K[0].index_add_(0, which_N, weights_N * (1.0 - labels_N))
    both_2K[1].index_add_(0, which_N, weights_N * labels_N)
    return both_2K[0], both_2K[1]


def auc(negatives_K: Tensor, positives_K: Tensor) -> float:
    """AUC of groups of tied scores in ascending order; both classes must be there."""
    below_K = negatives_K.cumsum(0) - 0.5 * negatives_K
    pairs = negatives_K.sum() * positives_K.sum()
    return float(((positives_K * below_K).sum() / pairs).item())


def average_precision(negatives_K: Tensor, positives_K: Tensor) -> float:
    """Average precision of groups of tied scores in ascending order; positives must be there."""
    found_K = positives_K.flip(0).cumsum(0)
    retrieved_K = found_K + negatives_K.flip(0).cumsum(0)
    precision_K = found_K / retrieved_K.clamp(min=torch.finfo(torch.float64).tiny)
    return float(((positives_K.flip(0) * precision_K).sum() / positives_K.sum()).item())
