"""Per-task losses over each task's own sample space.

Shape suffixes: B rows, T tasks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Element-wise -y log σ(z) - (1 - y) log(1 - σ(z)), from the logit z without overflow."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Element-wise (z - y)²."""
    return torch.square(logits - labels)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
}


def task_losses(
    logits_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor, kinds: Sequence[str]
) -> Tensor:
    """The weighted sum of each task's loss: the numerator of L_k = Σ δ w ℓ / Σ δ w.

    The denominator belongs to the caller, because it spans the batches of all workers.

    Args:
        logits_BT: outputs of the towers.
        labels_BT: labels; any value, NaN included, where the weight is zero.
        weights_BT: sample weight times sample-space indicator; zero takes the row out of the task's
            loss and of its gradient, whatever its logit and label are.
        kinds: loss of each task, a name in :data:`LOSSES`.

    Returns:
        numerators_T, in the dtype of the logits.

    Raises:
        ValueError: a kind is unknown, or the shapes do not agree.
    """
    if not logits_BT.shape == labels_BT.shape == weights_BT.shape:
        raise ValueError(
            f"logits {tuple(logits_BT.shape)}, labels {tuple(labels_BT.shape)} and weights"
            f" {tuple(weights_BT.shape)} must have the same shape [rows, tasks]"
        )
    if len(kinds) != logits_BT.shape[1]:
        raise ValueError(f"{len(kinds)} loss kinds for {logits_BT.shape[1]} tasks")
    for kind in kinds:
        if kind not in LOSSES:
            raise ValueError(f"loss {kind!r} is unknown; choose one of {', '.join(LOSSES)}")
    present_BT = weights_BT != 0
    logits_BT = torch.where(present_BT, logits_BT, 0.0)
    labels_BT = torch.where(present_BT, labels_BT, 0.0).to(logits_BT.dtype)
    if len(set(kinds)) == 1:
        losses_BT = LOSSES[kinds[0]](logits_BT, labels_BT)
    else:
        columns = zip(kinds, logits_BT.unbind(1), labels_BT.unbind(1), strict=True)
        losses_BT = torch.stack([LOSSES[kind](z, y) for kind, z, y in columns], dim=1)
    return (losses_BT * weights_BT).sum(dim=0)
