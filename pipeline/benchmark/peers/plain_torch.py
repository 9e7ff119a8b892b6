"""PLE as most public code writes it: a ModuleList of experts, stacked and mixed by einsum.

Tables are ``nn.EmbeddingBag`` and one dense optimizer moves everything. It reads the batches of
our own reader, so that only the model and its step are compared.

Shape suffixes: B rows, D width, E experts.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.batch import Batch


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers)


class _Level(nn.Module):
    def __init__(self, width: int, hidden: Sequence[int], experts: int, last: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(_mlp([width, *hidden]) for _ in range(2 * experts))
        self.shared = nn.ModuleList(_mlp([width, *hidden]) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(width, 2 * experts, bias=False) for _ in range(2))
        self.shared_gate = None if last else nn.Linear(width, 3 * experts, bias=False)

    def forward(self, tasks: list[Tensor], shared_BD: Tensor) -> tuple[list[Tensor], Tensor]:
        half = len(self.own) // 2
        own = [expert(tasks[e // half]) for e, expert in enumerate(self.own)]
        shared = [expert(shared_BD) for expert in self.shared]
        mixed = [
            _mix(F.softmax(gate(x), dim=1), [*own[t * half : (t + 1) * half], *shared])
            for t, (gate, x) in enumerate(zip(self.gates, tasks, strict=True))
        ]
        if self.shared_gate is None:
            return mixed, shared_BD
        gate_BE = F.softmax(self.shared_gate(shared_BD), dim=1)
        return mixed, _mix(gate_BE, [*own, *shared])


def _mix(gate_BE: Tensor, experts: list[Tensor]) -> Tensor:
    return torch.einsum("be,bed->bd", gate_BE, torch.stack(experts, dim=1))


class PlainPle(nn.Module):
    """Two tasks, the same number of experts for each and shared.

    Args:
        table_rows: rows of each table, in the order of the batches' keys.
        width: of every embedding; dense: number columns.
        levels: hidden widths of the experts by level; experts: of a task, and shared ones.
        tower: hidden widths of the towers.
    """

    def __init__(
        self,
        table_rows: Sequence[int],
        width: int,
        dense: int,
        levels: Sequence[Sequence[int]],
        experts: int,
        tower: Sequence[int],
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in table_rows)
        widths = [len(table_rows) * width + dense, *(hidden[-1] for hidden in levels)]
        self.levels = nn.ModuleList(
            _Level(i, hidden, experts, last=number == len(levels) - 1)
            for number, (i, hidden) in enumerate(zip(widths, levels, strict=False))
        )
        self.towers = nn.ModuleList(
            nn.Sequential(_mlp([widths[-1], *tower]), nn.Linear(tower[-1], 1)) for _ in range(2)
        )

    def forward(self, batch: Batch) -> Tensor:
        assert batch.ids is not None
        columns = [batch.ids[key] for key in batch.ids.keys()]  # noqa: SIM118
        pooled = [
            table(column.values(), column.offsets()[:-1])
            for table, column in zip(self.tables, columns, strict=True)
        ]
        x_BD = torch.cat([*pooled, batch.dense_BN], dim=1)
        tasks, shared_BD = [x_BD, x_BD], x_BD
        for level in self.levels:
            tasks, shared_BD = level(tasks, shared_BD)
        logits = [tower(x) for tower, x in zip(self.towers, tasks, strict=True)]
        return torch.cat(logits, dim=1)


def train_plain(model: PlainPle, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> int:
    """One step per batch; returns the rows."""
    rows = 0
    for batch in batches:
        rows += batch.rows
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.labels_BT)
        loss.backward()
        optimizer.step()
    return rows
