"""How gates use experts: mean and deviation of their weights, entropy, and gates gone wrong.

The figure of the PLE paper (Tang et al., RecSys 2020, figure 8) is the mean and deviation of each
expert's weight by task and level. A gate is

* **collapsed** where one and the same expert has at least HIGH of the weight in at least NEARLY_ALL
  rows: the others are dead weight for it;
* **polarised** where that is true of some expert or other, row by row, without one of them having
  them all: the gate switches instead of mixing (the polarisation that HoME, Wang et al., arXiv
  2408.05430, normalises experts against).

An expert is **unused** where no gate that reads it gives it a mean weight of UNUSED.

B rows, E experts of a gate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HIGH = 0.95
NEARLY_ALL = 0.95
UNUSED = 0.01

# rows, entropy; then for each expert: weight, its square, rows in which it is HIGH.
_SCALARS = 2


@dataclass(frozen=True)
class GateReport:
    """One gate over the evaluated rows.

    Attributes:
        level: from 1.
        stream: whose gate it is: a task, a group, ``shared``.
        experts: names of its experts.
        mean, deviation: of each expert's weight over rows.
        entropy: mean over rows of −Σ g·ln g over ln E: 1 = an even mixture, 0 = one expert alone;
            None for a gate of one expert.
        dominated: for each expert, the share of rows in which it has HIGH of the weight or more.
        rows: rows seen.
    """

    level: int
    stream: str
    experts: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    entropy: float | None
    dominated: tuple[float, ...]
    rows: int

    @property
    def collapsed_onto(self) -> str | None:
        """The one expert that has nearly all of the weight in nearly all rows."""
        if len(self.experts) == 1 or max(self.dominated) < NEARLY_ALL:
            return None
        return self.experts[self.dominated.index(max(self.dominated))]

    @property
    def polarised(self) -> bool:
        """Whether nearly every row goes to one expert, but not all to the same."""
        return (
            len(self.experts) > 1
            and self.collapsed_onto is None
            and sum(self.dominated) >= NEARLY_ALL
        )


class GateSums:
    """Sums over rows of one gate.

    Args:
        experts: E.
    """

    def __init__(self, experts: int, device: torch.device | str) -> None:
        self.experts = experts
        size = _SCALARS + 3 * experts
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, gate_BE: Tensor, real_B: Tensor) -> None:
        """Adds the rows of a batch that are real."""
        real_B1 = real_B.double()[:, None]
        weight_BE = torch.where(real_B1 > 0, gate_BE.double(), 0.0)
        entropy_B = -torch.special.xlogy(weight_BE, weight_BE).sum(1)
        self.sums += torch.cat(
            [
                torch.stack([real_B1.sum(), entropy_B.sum()]),
                weight_BE.sum(0),
                weight_BE.square().sum(0),
                (weight_BE >= HIGH).double().sum(0),
            ]
        )

    def report(self, level: int, stream: str, experts: Sequence[str]) -> GateReport:
        """The gate's figures, after sums were merged."""
        values = self.sums.tolist()
        count, entropy = values[:_SCALARS]
        rows = max(count, 1.0)
        E = self.experts
        sums, squares, high = (values[_SCALARS + i * E : _SCALARS + (i + 1) * E] for i in range(3))
        means = [s / rows for s in sums]
        variances = [max(q / rows - m * m, 0.0) for q, m in zip(squares, means, strict=True)]
        return GateReport(
            level=level,
            stream=stream,
            experts=tuple(experts),
            mean=tuple(means),
            deviation=tuple(math.sqrt(v) for v in variances),
            entropy=entropy / rows / math.log(E) if E > 1 else None,
            dominated=tuple(n / rows for n in high),
            rows=int(count),
        )


def gate_flags(gates: Sequence[GateReport]) -> list[str]:
    """Sentences about gates and experts that do not do their work."""
    flags = []
    for gate in gates:
        place = f"level {gate.level}, gate of {gate.stream}"
        onto = gate.collapsed_onto
        if onto is not None:
            share = max(gate.dominated)
            flags.append(
                f"{place}: collapsed onto {onto} ({share:.0%} of rows give it {HIGH:.0%} or more)"
            )
        elif gate.polarised:
            flags.append(
                f"{place}: polarised ({sum(gate.dominated):.0%} of rows give one expert {HIGH:.0%} "
                "or more, not always the same)"
            )
    return flags + [
        f"level {level}: {name} is unused (at most {most:.2%} of any gate's weight)"
        for level, name, most in unused_experts(gates)
    ]


def unused_experts(gates: Sequence[GateReport]) -> list[tuple[int, str, float]]:
    """(level, expert, highest mean weight) of experts that no gate uses."""
    highest: dict[tuple[int, str], float] = {}
    for gate in gates:
        for name, mean in zip(gate.experts, gate.mean, strict=True):
            key = (gate.level, name)
            highest[key] = max(highest.get(key, 0.0), mean)
    return [(level, name, most) for (level, name), most in highest.items() if most < UNUSED]
