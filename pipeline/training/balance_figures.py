"""What is logged of how tasks were balanced."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BalanceFigures:
    """How tasks were balanced since the last log.

    Attributes:
        weights: mean α·ω of each task over the steps.
        norms: norm of each task's gradient at the boundary, of its own loss, unweighted; the root
            of the mean square over the steps measured, empty where none was.
        cosines: cosine between the gradients of two tasks, from the same mean inner products.
    """

    weights: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[tuple[str, str], float] = field(default_factory=dict)

    @staticmethod
    def of(
        names: Sequence[str], weights: Sequence[float], gramian: Sequence[Sequence[float]]
    ) -> "BalanceFigures":
        """From α·ω and the inner products of the gradients; zero on the diagonal = not measured."""
        squares = {k: row[k] for k, row in enumerate(gramian) if row[k] > 0}
        return BalanceFigures(
            weights=dict(zip(names, weights, strict=True)),
            norms={names[k]: math.sqrt(square) for k, square in squares.items()},
            cosines={
                (names[a], names[b]): gramian[a][b] / math.sqrt(squares[a] * squares[b])
                for a in squares
                for b in squares
                if a < b
            },
        )

    def metrics(self) -> dict[str, float]:
        """The figures by metric name."""
        values = {f"balance/weight/{task}": value for task, value in self.weights.items()}
        values |= {f"balance/norm/{task}": value for task, value in self.norms.items()}
        values |= {f"balance/cosine/{a}/{b}": value for (a, b), value in self.cosines.items()}
        return values

    def records(self) -> Iterator[tuple[str, str, float]]:
        """The figures as (task, metric, value); the cosine of two tasks is of task ``a/b``."""
        for task, value in self.weights.items():
            yield task, "weight", value
        for task, value in self.norms.items():
            yield task, "norm", value
        for (a, b), value in self.cosines.items():
            yield f"{a}/{b}", "cosine", value
