"""One level: expert banks, gates, and the streams the gates make.

Shape suffixes: B rows, E experts, D width of a stream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.expert_blocks import Scope
from ple.experts import ExpertBank
from ple.fusion import StreamShape
from ple.gates import Chosen, Gate, SelfGate, gate_weights, mix_batched, mix_looped
from ple.interaction import FeatureGate
from ple.layers import init_output
from ple.level_blocks import Read, expert_outputs, level_sums
from ple.level_plan import LevelPlan, plan_level, same_streams
from ple.selectors import distinct, selector, selector_shape
from ple.wiring import LevelWiring, Output

_Mix = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class ExpertOptions:
    """What all experts share; see :class:`ple.experts.ExpertBank`.

    ``activation`` is also that of the gates' hidden layers.
    """

    activation: str = "relu"
    normalization: str = "none"
    dropout: float = 0.0


class ExtractionNetwork(nn.Module):
    """One level: expert banks, gates, and the streams the gates make.

    Args:
        wiring: the level.
        shapes: of the streams it is handed.
        options: of its experts.
        scope: asked in backward passes, see :class:`ple.expert_blocks.Scope`.
        feature_gate: factors and rank of the feature gates of banks that have one.
    """

    def __init__(
        self,
        wiring: LevelWiring,
        shapes: Sequence[StreamShape],
        options: ExpertOptions,
        scope: Scope | None = None,
        feature_gate: tuple[int, int] = (2, 16),
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self._scope = Scope() if scope is None else scope
        self._plans: dict[tuple[int, ...], LevelPlan | None] = {}
        form = (options.activation, options.normalization, options.dropout)
        experts, feature_gates = {}, {}
        for bank in wiring.banks:
            key, read = bank.owner.key, shapes[bank.reads]
            experts[key] = ExpertBank(bank.experts, read.width, bank.hidden, *form, read.fan_in)
            if bank.feature_gated:
                feature_gates[key] = FeatureGate(read.width, *feature_gate, read.fan_in)
        self.experts = nn.ModuleDict(experts)
        self.feature_gates = nn.ModuleDict(feature_gates)
        gate_options = (wiring.gate_hidden, wiring.gate_bias, options.activation)
        gates, self_gates, native = {}, {}, {}
        for output in wiring.outputs:
            key = output.owner.key
            if output.gated:
                shape = selector_shape(output, shapes)
                gates[key] = Gate(shape.width, wiring.columns(output), *gate_options, shape.fan_in)
            if output.self_gated is not None:
                shape = shapes[output.selectors[0]]
                own = wiring.banks[output.self_gated].experts
                self_gates[key] = SelfGate(shape.width, own, *gate_options, shape.fan_in)
            if output.native is not None and wiring.banks[output.native].experts > 1:
                native[key] = nn.Parameter(torch.empty(wiring.banks[output.native].experts))
        self.gates = nn.ModuleDict(gates)
        self._linear_gates = all(gate.linear is not None for gate in gates.values())
        self.self_gates = nn.ModuleDict(self_gates)
        self.native_weights = nn.ParameterDict(native)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights of native experts; banks and gates have drawn theirs."""
        for weights_E in self.native_weights.values():
            init_output(weights_E, len(weights_E))

    def flops_per_row(self) -> int:
        """Gated sums, two per weighed value; experts and gates count for themselves."""
        weighed = sum(self.wiring.columns(output) for output in self.wiring.outputs if output.gated)
        weighed += sum(
            self.wiring.banks[output.self_gated].experts
            for output in self.wiring.outputs
            if output.self_gated is not None
        )
        return 2 * weighed * self.wiring.out_width

    def forward(
        self,
        streams: Sequence[Tensor],
        looped: bool | None = None,
        real_B: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Streams in, streams out.

        Args:
            streams: each [B, D].
            looped: form of the computation; absent = looped on a CPU, batched elsewhere.
            real_B: rows that enter batch statistics; absent = all.

        Returns:
            The streams of ``wiring.outputs``, and the gate weights [B, E] of those with a gate,
            for looking at: on a CPU they may have no gradient.
        """
        looped = streams[0].device.type == "cpu" if looped is None else looped
        at_once = self._at_once(streams) if looped else None
        if at_once is not None:
            return at_once
        gated = [output for output in self.wiring.outputs if output.gated]
        chosen = [
            Chosen(self.gates[output.owner.key], selector(output, streams))  # type: ignore[arg-type]
            for output in gated
        ]
        if looped:
            each = self._looped(streams, chosen, real_B)
            return self._outputs(streams, chosen, mix_looped, each, [bank[0] for bank in each])
        stacked = [bank.batched(x, real_B) for bank, x in self._banks(streams)]
        firsts = [bank[:, 0] for bank in stacked]
        return self._outputs(streams, chosen, mix_batched, stacked, firsts)

    def _banks(self, streams: Sequence[Tensor]) -> list[tuple[ExpertBank, Tensor]]:
        reads = [streams[bank.reads] for bank in self.wiring.banks]
        keys = [bank.owner.key for bank in self.wiring.banks]
        gates = self.feature_gates
        reads = [gates[k](x) if k in gates else x for k, x in zip(keys, reads, strict=True)]
        return list(zip(self.experts.values(), reads, strict=True))  # type: ignore[arg-type]

    def _at_once(self, streams: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
        """The whole level in one function, if it is ReLU experts and linear gates alone."""
        same = same_streams(streams)
        if same not in self._plans:
            self._plans[same] = plan_level(self.wiring, same)
        plan = self._plans[same]
        if plan is None or not self._linear_gates:
            return None
        layers = [bank.relu_layers() for bank in self.experts.values()]  # type: ignore[operator]
        if None in layers:
            return None
        gates: list[Gate] = list(self.gates.values())  # type: ignore[arg-type]
        reads = [
            Read(streams[stream], [layers[n] for n in banks], [gates[g].layer() for g in own])
            for stream, banks, own in zip(plan.streams, plan.banks, plan.gates, strict=True)
        ]
        sums, weights = level_sums(reads, plan.mixes, self._scope)
        return [sums[p] for p in plan.place], [weights[p] for p in plan.place]

    def _looped(
        self,
        streams: Sequence[Tensor],
        chosen: Sequence[Chosen],
        real_B: Tensor | None,
    ) -> list[list[Tensor]]:
        """The outputs of every bank's experts; banks and gates that read the same run together."""
        banks = self._banks(streams)
        layers = [bank.relu_layers() for bank, _ in banks]
        each: list[list[Tensor]] = [
            bank.looped(x, real_B) if own is None else []
            for (bank, x), own in zip(banks, layers, strict=True)
        ]
        for stream in distinct([x for _, x in banks]):
            members = [n for n, (_, x) in enumerate(banks) if x is stream and layers[n]]
            if members:
                linear = [own for own in chosen if own.selector_BI is stream and own.gate.linear]
                gates = [own.gate.layer() for own in linear]
                read = Read(stream, [layers[n] or () for n in members], gates)
                found, logits = expert_outputs(read, self._scope)
                for own, logits_BE in zip(linear, logits, strict=True):
                    own.logits_BE = logits_BE
                outputs = iter(found)
                for n in members:
                    each[n] = [next(outputs) for _ in range(banks[n][0].experts)]
        return each

    def _outputs(
        self,
        streams: Sequence[Tensor],
        chosen: Sequence[Chosen],
        mix: _Mix,
        banks: Sequence[Any],
        firsts: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        gated = [output for output in self.wiring.outputs if output.gated]
        own = [output for output in self.wiring.outputs if output.self_gated is not None]
        gates = gate_weights(chosen)
        weights = [self._plus_native(o, gate_BE) for o, gate_BE in zip(gated, gates, strict=True)]
        weights += [self.self_gates[o.owner.key](streams[o.selectors[0]]) for o in own]
        members: list[Sequence[Any]] = [o.banks for o in gated]
        members += [(o.self_gated,) for o in own]
        stopped = [o.stopped for o in gated] + [()] * len(own)
        mixed = mix(weights, banks, members, stopped) if weights else []
        sums = {o.owner: sum_BD for o, sum_BD in zip(gated, mixed, strict=False)}
        for output, sum_BD in zip(own, mixed[len(gated) :], strict=True):
            sums[output.owner] = sums[output.owner] + sum_BD
        outputs = [sums[o.owner] if o.gated else firsts[o.banks[0]] for o in self.wiring.outputs]
        return outputs, gates

    def _plus_native(self, output: Output, gate_BE: Tensor) -> Tensor:
        """The gate's weights plus those of the unit's own experts; one expert has weight 1."""
        if output.native is None:
            return gate_BE
        ends = list(accumulate(self.wiring.banks[bank].experts for bank in output.banks))
        position = output.banks.index(output.native)
        own = self.wiring.banks[output.native].experts
        key = output.owner.key
        native_E = self.native_weights[key] if key in self.native_weights else gate_BE.new_ones(1)
        return gate_BE + F.pad(native_E, (ends[position] - own, ends[-1] - ends[position]))
