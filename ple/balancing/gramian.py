"""Inner products of task gradients where the tasks meet.

Shape suffixes: B rows, D width of a stream, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def task_gramian(
    losses_T: Tensor,
    boundary: Sequence[Tensor],
    outputs: Sequence[Tensor],
    reads: Sequence[Sequence[int]],
) -> Tensor:
    """[T, T] float64 inner products ⟨∂L_a/∂z, ∂L_b/∂z⟩, z all boundary activations together.

    The gradients are taken with respect to activations only: no parameter gets a gradient, fused
    embedding tables do not move, and layers below the boundary are not entered. The graph is kept
    for the backward pass to come. Gradients are per row, so the Gramian over the rows of several
    workers is the sum of theirs, provided each worker's L_k has the global denominator.

    One pass per task, not a batched one: a pass that starts from the towers a task reads enters
    only the experts that task reads, where a batched one would enter all for every task.

    Args:
        losses_T: this worker's share of each task's loss, part of a graph that reads ``boundary``.
        boundary: activations [B, D] of any widths; one that a task does not read adds nothing.
        outputs: output of each tower [B, O], through which the losses depend on ``boundary``.
        reads: for each task the outputs its loss reads, see :func:`read_outputs`.

    Raises:
        ValueError: no boundary tensor carries gradients.
    """
    if not any(z_BD.requires_grad for z_BD in boundary):
        raise ValueError(
            "nothing trains below the boundary, so tasks have no gradients to compare there"
        )
    grads = [
        _gradients(loss, boundary, [outputs[index] for index in indices])
        for loss, indices in zip(losses_T.unbind(), reads, strict=True)
    ]
    tasks = len(grads)
    gramian_TT = torch.zeros(tasks, tasks, dtype=torch.float64, device=losses_T.device)
    for z_BD, of_tasks in zip(boundary, zip(*grads, strict=True), strict=True):
        readers = [task for task, grad_BD in enumerate(of_tasks) if grad_BD is not None]
        if len(readers) == 1:  # a task's own stream
            grad_N = of_tasks[readers[0]].flatten().to(losses_T.dtype)
            gramian_TT[readers[0], readers[0]] += torch.dot(grad_N, grad_N)
        elif readers:
            zero_BD = z_BD if len(readers) == tasks else torch.zeros_like(z_BD)
            rows = [zero_BD if grad_BD is None else grad_BD for grad_BD in of_tasks]
            rows_TN = torch.stack([row_BD.flatten() for row_BD in rows]).to(losses_T.dtype)
            gramian_TT += rows_TN @ rows_TN.T
    return gramian_TT


def read_outputs(losses_T: Tensor, joined_BO: Tensor, widths: Sequence[int]) -> list[list[int]]:
    """For each task the towers whose outputs its loss reads.

    The losses of all tasks come from one tensor of joined outputs, so their graph sends zeros to
    towers that a task has nothing to do with, and on through every expert. What is truly read shows
    where a gradient differs from zero.

    Args:
        losses_T: losses of made-up rows with labels and weights that leave nothing unread.
        joined_BO: the leaf they come from: outputs of all towers.
        widths: O of each tower.
    """
    reads = []
    for loss in losses_T.unbind():
        (grad_BO,) = torch.autograd.grad(loss, joined_BO, retain_graph=True)
        parts = grad_BO.split(list(widths), dim=1)
        reads.append([index for index, part_BO in enumerate(parts) if bool(part_BO.any())])
    return reads


def _gradients(
    loss: Tensor, boundary: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    if not outputs:
        return [None] * len(boundary)
    at_outputs = torch.autograd.grad(loss, outputs, retain_graph=True)
    return torch.autograd.grad(
        outputs, boundary, grad_outputs=at_outputs, retain_graph=True, allow_unused=True
    )
