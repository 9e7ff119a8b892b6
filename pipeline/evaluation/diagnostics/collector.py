"""Collects diagnostics while an evaluation runs: one pass, one merge over workers.

B rows of a batch, E experts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import ple
from pipeline.evaluation.diagnostics.gates import (
    GateReport,
    GateSums,
    gate_flags,
    unused_experts,
)
from pipeline.evaluation.diagnostics.units import ExpertReport, UnitActivity, unit_flags
from ple.experts import ExpertBank
from ple.level import ExtractionNetwork


@dataclass(frozen=True)
class Diagnostics:
    """What gates and experts do on the evaluated rows.

    Attributes:
        gates: every gate, level by level; empty for kinds without gates.
        experts: every expert, level by level.
    """

    gates: tuple[GateReport, ...]
    experts: tuple[ExpertReport, ...]

    @property
    def flags(self) -> list[str]:
        """Sentences about what does not do its work; empty is good."""
        return gate_flags(self.gates) + unit_flags(self.experts)

    def mean_weights(self) -> list[list[list[float]]]:
        """Mean gate weights: level → stream → expert."""
        levels: dict[int, list[list[float]]] = {}
        for gate in self.gates:
            levels.setdefault(gate.level, []).append(list(gate.mean))
        return list(levels.values())

    def values(self) -> dict[str, float]:
        """The figures by metric name: ``gates/1/click/mean/shared 1``, ``experts/1/click 1/…``."""
        values: dict[str, float] = {}
        for gate in self.gates:
            place = f"gates/{gate.level}/{gate.stream}"
            for name, mean, deviation in zip(gate.experts, gate.mean, gate.deviation, strict=True):
                values[f"{place}/mean/{name}"] = mean
                values[f"{place}/std/{name}"] = deviation
            if gate.entropy is not None:
                values[f"{place}/entropy"] = gate.entropy
                values[f"{place}/dominated"] = sum(gate.dominated)
        for expert in self.experts:
            values[f"experts/{expert.level}/{expert.expert}/dead_units"] = expert.dead_share
        values["gates/collapsed"] = float(sum(g.collapsed_onto is not None for g in self.gates))
        values["gates/polarised"] = float(sum(g.polarised for g in self.gates))
        values["experts/unused"] = float(len(unused_experts(self.gates)))
        return values

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON; :meth:`from_tree` reads it."""
        return {
            "gates": [asdict(gate) for gate in self.gates],
            "experts": [asdict(expert) for expert in self.experts],
            "flags": self.flags,
        }

    @staticmethod
    def from_tree(tree: dict[str, Any]) -> "Diagnostics":
        def tuples(record: dict[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}

        return Diagnostics(
            tuple(GateReport(**tuples(gate)) for gate in tree["gates"]),
            tuple(ExpertReport(**tuples(expert)) for expert in tree["experts"]),
        )


class DiagnosticsCollector:
    """Sums up gates and activations of a ranker, batch by batch.

    Use: ``with collector.watching(): for batch: ... collector.add(gates, real_B)``, then ``reduce``
    on every rank. Activations are seen while the forward pass of a batch runs, so ``begin(real_B)``
    comes before it.

    Args:
        ranker: the model itself, without wrappers.
        device: of the batches.
    """

    def __init__(self, ranker: ple.Ranker, device: torch.device | str) -> None:
        self._names = ranker.gate_names()
        self._gates = [
            [GateSums(len(experts), device) for _, experts in level] for level in self._names
        ]
        self._bank_names = ranker.bank_names()
        self._banks = [_banks(level) for level in ranker.extraction.levels]
        self._units = [
            [UnitActivity(b.experts, [w.shape[1] for w in b.weights], device) for b in level]
            for level in self._banks
        ]
        self._real_B: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, activations of the experts are looked at."""
        for banks, units in zip(self._banks, self._units, strict=True):
            for bank, activity in zip(banks, units, strict=True):
                bank.watch = self._watcher(activity)
        try:
            yield
        finally:
            for banks in self._banks:
                for bank in banks:
                    bank.watch = None

    def begin(self, real_B: Tensor) -> None:
        """Says which rows of the coming batch count."""
        self._real_B = real_B

    def add(self, gates: Sequence[Sequence[Tensor]]) -> None:
        """Takes the gates of the batch: level → stream → [B, E]."""
        assert self._real_B is not None, "begin comes first"
        for sums, level in zip(self._gates, gates, strict=True):
            for gate, gate_BE in zip(sums, level, strict=True):
                gate.add(gate_BE, self._real_B)

    def reduce(self) -> Diagnostics:
        """Merges all ranks; every rank must call it."""
        gate_sums = [gate.sums for level in self._gates for gate in level]
        active = [part for level in self._units for bank in level for part in bank.active]
        if dist.is_initialized() and dist.get_world_size() > 1:
            _merge(gate_sums, dist.ReduceOp.SUM)
            _merge(active, dist.ReduceOp.MAX)
        return Diagnostics(
            tuple(
                gate.report(level, stream, experts)
                for level, (sums, names) in enumerate(
                    zip(self._gates, self._names, strict=True), start=1
                )
                for gate, (stream, experts) in zip(sums, names, strict=True)
            ),
            tuple(
                report
                for level, (units, names) in enumerate(
                    zip(self._units, self._bank_names, strict=True), start=1
                )
                for activity, experts in zip(units, names, strict=True)
                for report in activity.reports(level, experts)
            ),
        )

    def _watcher(self, activity: UnitActivity) -> Callable[[int, int | None, Tensor], None]:
        def watch(layer: int, expert: int | None, h: Tensor) -> None:
            assert self._real_B is not None, "begin comes first"
            activity.add(layer, expert, h, self._real_B)

        return watch


def _banks(level: nn.Module) -> list[ExpertBank]:
    assert isinstance(level, ExtractionNetwork)
    return [bank for bank in level.experts.values() if isinstance(bank, ExpertBank)]


def _merge(tensors: Sequence[Tensor], operation: Any) -> None:
    """One collective for all of them."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, op=operation)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
