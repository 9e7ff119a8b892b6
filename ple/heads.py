"""From the outputs of the towers to losses and predictions of all tasks.

Shape suffixes: B rows, T tasks, O outputs of all towers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ple.losses import BinaryCrossEntropy, Loss

_BINARY_CROSS_ENTROPY = BinaryCrossEntropy()


@dataclass(frozen=True)
class Head:
    """One task between its tower and its loss.

    Attributes:
        loss: an object of :mod:`ple.losses`.
        product_of: tasks whose probabilities multiply to this task's, which has no tower: ESMM
            (X. Ma et al., SIGIR 2018, arXiv 1804.07931), P(click, convert) = P(click) ·
            P(convert | click).
        propensity: task whose probability weighs this task's rows, see :meth:`Heads.losses`.
        propensity_floor: the least probability that is divided by.
        at_most: task whose probability this task's should not exceed, see :meth:`Heads.losses`.
        at_most_strength: weight of the penalty for that.
        negatives_kept: share of the training rows with label 0 that was kept; 1 = all.
    """

    loss: Loss = _BINARY_CROSS_ENTROPY
    product_of: tuple[int, ...] = ()
    propensity: int | None = None
    propensity_floor: float = 0.05
    at_most: int | None = None
    at_most_strength: float = 0.0
    negatives_kept: float = 1.0

    @property
    def outputs(self) -> int:
        return 0 if self.product_of else self.loss.outputs

    @property
    def is_simple(self) -> bool:
        """Whether the loss is that of one output, whatever other tasks do."""
        dependent = self.product_of or self.propensity is not None or self.at_most is not None
        return not dependent and self.outputs == 1

    @property
    def is_plain(self) -> bool:
        """Whether the task is simple and its output is its prediction."""
        return self.is_simple and self.negatives_kept == 1.0


class Heads:
    """Losses and predictions of all tasks; holds no parameters.

    Where a task's training rows are a sample of its negatives, its own loss is that of the sample,
    from the raw logit z. Everything else that reads its probability (predictions, products,
    propensities) takes that of the whole: a kept share w of the negatives multiplies the odds by
    1/w, so the logit is z + log w (X. He et al., ADKDD 2014, section 6.3: q = p / (p + (1 - p)/w)).

    Args:
        heads: the tasks, in order; those that a task names stand before it.

    Attributes:
        outputs: O, outputs of all towers.
        slices: the columns of each task's tower; empty without one.

    Raises:
        ValueError: a task names one that does not stand before it or has no probability, or a
            product with a loss other than binary cross-entropy.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads = tuple(heads)
        for position, head in enumerate(self.heads):
            self._check(position, head)
        ends = list(accumulate((head.outputs for head in self.heads), initial=0))
        self.outputs = ends[-1]
        self.slices = tuple(slice(start, end) for start, end in pairwise(ends))
        self._plain = all(head.is_plain for head in self.heads)
        same = len({head.loss for head in self.heads}) == 1
        self._alike = same and all(head.is_simple for head in self.heads)

    def totals(self, weights_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """totals_T, what the loss of each task is divided by once all workers' are added: Σδ·w.

        With a propensity it is Σw over all rows of the propensity's task, sampled negatives
        counted for those they stand for.
        """
        totals_T = weights_BT.sum(0)
        if self._plain:
            return totals_T
        totals = list(totals_T.unbind())
        for task, head in enumerate(self.heads):
            if head.propensity is not None:
                weights_B = weights_BT[:, head.propensity]
                kept = self.heads[head.propensity].negatives_kept
                if kept != 1.0:
                    clicked_B = labels_BT[:, head.propensity]
                    weights_B = weights_B * torch.where(clicked_B == 0, 1.0 / kept, 1.0)
                totals[task] = weights_B.sum()
        return torch.stack(totals)

    def losses(self, outputs_BO: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> Tensor:
        """numerators_T = Σδ·w·ℓ by task, in the dtype of the outputs.

        With ``propensity`` a task's ℓ is divided by p, the detached probability of the propensity's
        task, at least the floor, and :meth:`totals` counts all rows: R_IPS = 1/|D| Σ_D o·ℓ/p̂ of
        ESCM²-IPS (H. Wang et al., SIGIR 2022, arXiv 2204.05125). With ``at_most`` ℓ grows by
        strength · max(p_task - p_other, 0), the behavioural expectation calibrator of AITM (D. Xi
        et al., KDD 2021, arXiv 2105.08489).

        Args:
            outputs_BO: outputs of the towers, side by side.
            labels_BT: labels; any value, NaN included, where the weight is zero.
            weights_BT: sample weight times sample-space indicator; zero takes the row out of the
                task's loss and of its gradient, whatever outputs and label are.

        Raises:
            ValueError: the shapes do not agree.
        """
        rows, tasks = outputs_BO.shape[0], len(self.heads)
        if outputs_BO.shape[1:] != (self.outputs,):
            raise ValueError(
                f"outputs {tuple(outputs_BO.shape)} where the tasks need [rows, {self.outputs}]"
            )
        if not labels_BT.shape == weights_BT.shape == (rows, tasks):
            raise ValueError(
                f"labels {tuple(labels_BT.shape)} and weights {tuple(weights_BT.shape)} must have"
                f" the shape [rows, tasks] = {(rows, tasks)}"
            )
        present_BT = weights_BT != 0
        labels_BT = torch.where(present_BT, labels_BT, 0.0).to(outputs_BO.dtype)
        if self._alike:
            outputs_BT = torch.where(present_BT, outputs_BO, 0.0)
            losses_BT = self.heads[0].loss((outputs_BT,), labels_BT)
        else:
            columns = zip(present_BT.unbind(1), labels_BT.unbind(1), strict=True)
            losses_BT = torch.stack(
                [
                    self._task_loss(task, outputs_BO, present_B, labels_B)
                    for task, (present_B, labels_B) in enumerate(columns)
                ],
                dim=1,
            )
        return (losses_BT * weights_BT).sum(dim=0)

    def own_loss(
        self, task: int, outputs_BO: Tensor, labels_B: Tensor, weights_B: Tensor
    ) -> Tensor:
        """Σδ·w·ℓ of one task with a tower, without what other tasks bring into :meth:`losses`."""
        head, present_B = self.heads[task], weights_B != 0
        labels_B = torch.where(present_B, labels_B, 0.0).to(outputs_BO.dtype)
        outputs_BO = torch.where(present_B[:, None], outputs_BO[:, self.slices[task]], 0.0)
        return (head.loss(outputs_BO.unbind(1), labels_B) * weights_B).sum()

    def predictions(self, outputs_BO: Tensor) -> Tensor:
        """predictions_BT: logits of binary tasks, put right for sampling; values of others."""
        if self._plain:
            return outputs_BO
        return torch.stack(
            [self._prediction(task, outputs_BO) for task in range(len(self.heads))], dim=1
        )

    def _task_loss(
        self, task: int, outputs_BO: Tensor, present_B: Tensor, labels_B: Tensor
    ) -> Tensor:
        """ℓ of one task; outputs on rows that are not its own are blanked, whoever gave them."""
        head = self.heads[task]
        if head.is_simple:
            outputs_B = outputs_BO[:, self.slices[task].start]
            return head.loss((torch.where(present_B, outputs_B, 0.0),), labels_B)
        outputs_BO = torch.where(present_B[:, None], outputs_BO, 0.0)
        if head.product_of:
            losses_B = head.loss((self._prediction(task, outputs_BO),), labels_B)
        else:
            losses_B = head.loss(outputs_BO[:, self.slices[task]].unbind(1), labels_B)
        if head.propensity is not None:
            propensity_B = torch.sigmoid(self._prediction(head.propensity, outputs_BO.detach()))
            losses_B = losses_B / propensity_B.clamp(min=head.propensity_floor)
        if head.at_most is not None:
            ahead_B = torch.sigmoid(self._prediction(head.at_most, outputs_BO))
            own_B = torch.sigmoid(self._prediction(task, outputs_BO))
            losses_B = losses_B + head.at_most_strength * F.relu(own_B - ahead_B)
        return losses_B

    def _prediction(self, task: int, outputs_BO: Tensor) -> Tensor:
        head = self.heads[task]
        if head.product_of:
            return product_logit([self._prediction(f, outputs_BO) for f in head.product_of])
        prediction_B = head.loss.prediction(outputs_BO[:, self.slices[task]].unbind(1))
        if head.negatives_kept != 1.0:
            prediction_B = prediction_B + math.log(head.negatives_kept)
        return prediction_B

    def _check(self, position: int, head: Head) -> None:
        named = [("product_of", task) for task in head.product_of]
        for key in ("propensity", "at_most"):
            if getattr(head, key) is not None:
                named.append((key, getattr(head, key)))
        for key, other in named:
            if not 0 <= other < position or not self.heads[other].loss.is_binary:
                raise ValueError(
                    f"task {position}: `{key}` must name binary tasks before it, not task {other}"
                )
        wants_binary = head.product_of or head.at_most is not None or head.negatives_kept != 1.0
        if wants_binary and not head.loss.is_binary:
            raise ValueError(f"task {position} needs a binary loss, not {head.loss}")


def product_logit(logits: Sequence[Tensor]) -> Tensor:
    """The logit of Π σ(z_i).

    From log Π p_i = Σ log σ(z_i) and log(1 - Π p_i) = log Σ_i (1 - p_i)·Π_{j<i} p_j, whose terms
    are positive: nothing cancels, whatever the logits are.
    """
    log_product = torch.zeros_like(logits[0])
    terms = []
    for z in logits:
        terms.append(log_product + F.logsigmoid(-z))
        log_product = log_product + F.logsigmoid(z)
    return log_product - torch.logsumexp(torch.stack(terms), dim=0)
