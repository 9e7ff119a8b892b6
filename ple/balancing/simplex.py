"""Convex minimisation over the probability simplex, by steps between pairs of vertices.

Shape suffixes: T tasks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_MOST_ITERATIONS = 300
# Of the largest squared norm: how far above its minimum the objective may stay.
_TOLERANCE = 1e-7


def minimise_on_simplex(
    gramian_TT: Tensor,
    slopes: Callable[[Tensor], Tensor],
    line_minimum: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Pairwise Frank-Wolfe with exact line search, from equal weights.

    S. Lacoste-Julien, M. Jaggi: On the Global Linear Convergence of Frank-Wolfe Optimization
    Variants, NeurIPS 2015, algorithm 2: in every iteration weight moves from the vertex with the
    largest slope, among those that have weight, to the one with the smallest; the difference of the
    two slopes bounds what is left to gain. With two vertices the first iteration is exact.

    Args:
        gramian_TT: see :func:`solvable`; tasks whose diagonal is zero get no weight.
        slopes: weights to the objective's gradient.
        line_minimum: (weights, direction) to the best step length on the whole line.
    """
    allowed_T = gramian_TT.diagonal() > 0
    weights_T = allowed_T.double() / allowed_T.sum().clamp(min=1)
    vertices_T = torch.arange(len(weights_T), device=weights_T.device)
    enough = _TOLERANCE * gramian_TT.diagonal().max()
    for _ in range(_iterations(len(weights_T))):
        slopes_T = slopes(weights_T)
        least, to = torch.where(allowed_T, slopes_T, torch.inf).min(0)
        most, off = torch.where(weights_T > 0, slopes_T, -torch.inf).max(0)
        if len(weights_T) > 2 and not most - least > enough:
            break
        # One-hot by comparison: an index that lies on the device would have to be waited for.
        to_T, off_T = vertices_T == to, vertices_T == off
        direction_T = to_T.double() - off_T.double()
        length = line_minimum(weights_T, direction_T).clamp(min=0.0)
        length = torch.minimum(length, (weights_T * off_T).sum())
        weights_T = (weights_T + length * direction_T).clamp(min=0.0)
    return weights_T


def solvable(gramian_TT: Tensor) -> Tensor:
    """The Gramian where it is solved for: with more than two tasks, on the host.

    Iterating takes hundreds of operations on a few numbers: as device kernels they would cost more
    than waiting for the numbers does. Two tasks take one iteration, which needs no waiting.
    """
    return gramian_TT if len(gramian_TT) <= 2 else gramian_TT.cpu()


def _iterations(tasks: int) -> int:
    return _MOST_ITERATIONS if tasks > 2 else 1
