"""The body of the model: levels of experts and gates, wired as the kind says.

The reference kind is progressive layered extraction. H. Tang, J. Liu, M. Zhao, X. Gong: Progressive
Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized Recommendations. RecSys
2020. Level l has, for each task k, experts that read stream x_k, and shared experts that read
stream x_s. Task k's gate, with selector x_k, mixes task k's experts and the shared ones (section
4.1); the shared gate, with selector x_s, mixes the experts of every task and the shared ones
(section 4.2). The gated sums are the streams of the next level. Level 1 reads the feature vector in
every stream; the last level has no shared gate, and an earlier one only if the next level reads the
shared stream, so that no parameter is dead.

Shape suffixes: B rows, E experts, D width of a stream, T tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.expert_blocks import Scope, expert_outputs
from ple.experts import ExpertBank
from ple.fusion import Fusion, StreamShape, check_fusion
from ple.gates import Chosen, Gate, SelfGate, gate_weights, mix_batched, mix_looped
from ple.interaction import FeatureGate
from ple.layers import init_output
from ple.selectors import selector, selector_shape
from ple.wiring import LevelWiring, Output, Wiring

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
            The streams of ``wiring.outputs``, and the gate weights [B, E] of those with a gate.
        """
        gated = [output for output in self.wiring.outputs if output.gated]
        chosen = [
            Chosen(self.gates[output.owner.key], selector(output, streams))  # type: ignore[arg-type]
            for output in gated
        ]
        if streams[0].device.type == "cpu" if looped is None else looped:
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

    def _looped(
        self, streams: Sequence[Tensor], chosen: Sequence[Chosen], real_B: Tensor | None
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
            experts = [expert for n in members for expert in layers[n] or ()]
            if experts:
                linear = [own for own in chosen if own.selector_BI is stream and own.gate.linear]
                layers_of_gates = [own.gate.layer() for own in linear]
                found, logits = expert_outputs(stream, experts, self._scope, layers_of_gates)
                for own, logits_BE in zip(linear, logits, strict=True):
                    own.logits_BE = logits_BE
                outputs = iter(found)
                for n in members:
                    each[n] = [next(outputs) for _ in layers[n] or ()]
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


class Extraction(nn.Module):
    """Levels one after the other, from feature vectors to one stream per task.

    Args:
        wiring: of the kind, see :func:`ple.kinds.wire`.
        in_width: width of a feature vector.
        options: of the experts.
        fusion: what one level hands to the next, see :class:`Fusion`.
        feature_gate: factors and rank of the feature gates of a wiring that has them (HoME).
        fan_in: columns of a feature vector that carry a signal, the first ones; absent = all.

    Attributes:
        out_width: width of the task streams.
        scope: tells the experts what backward passes are for.

    Raises:
        ValueError: the options do not fit the kind.
    """

    def __init__(
        self,
        wiring: Wiring,
        in_width: int,
        options: ExpertOptions | None = None,
        fusion: str = "weighted_sum",
        feature_gate: tuple[int, int] = (2, 16),
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        check_fusion(fusion, wiring)
        self.wiring = wiring
        self.tasks = len(wiring.task_outputs)
        self.scope = Scope()
        self.out_width = wiring.levels[-1].out_width
        first = StreamShape(in_width, in_width if fan_in is None else fan_in)
        self.levels, self.fusions = nn.ModuleList(), nn.ModuleList()
        shapes = [first] * len(wiring.inputs)
        for number, level in enumerate(wiring.levels, start=1):
            expert_options = ExpertOptions() if options is None else options
            self.levels.append(
                ExtractionNetwork(level, shapes, expert_options, self.scope, feature_gate)
            )
            if number < len(wiring.levels):
                fused = Fusion(fusion, level, shapes)
                self.fusions.append(fused)
                shapes = [*([first] if wiring.keeps_input else []), *fused.out_shapes]

    def forward(
        self,
        features: Sequence[Tensor],
        looped: bool | None = None,
        real_B: Tensor | None = None,
        entering: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Feature vectors to the T task streams, and the gates of every level.

        Args:
            features: each [B, D], as many as ``wiring.views``.
            looped, real_B: as in :meth:`ExtractionNetwork.forward`.
            entering: is filled with the distinct streams that enter the last level, a cut through
                which all of the towers' dependence on the features passes. For shared_bottom, whose
                only level ends in what the tasks share, with the stream the towers read.

        Returns:
            The streams in task order; and for each level with gates, their weights [B, E] in the
            order of its outputs.
        """
        streams = [features[view] for view in self.wiring.inputs]
        gates: list[list[Tensor]] = []
        outputs: list[Tensor] = []
        for number, level in enumerate(self.levels):
            if number:
                carried = streams[:1] if self.wiring.keeps_input else []
                streams = [*carried, *self.fusions[number - 1](outputs, streams)]
            if entering is not None and number == len(self.levels) - 1:
                # A view of its own: its gradient is that of this level alone.
                streams = _aliased(streams)
                entering[:] = distinct(streams)
            outputs, level_gates = level(streams, looped, real_B)
            if level_gates:
                gates.append(level_gates)
        if entering is not None and len(outputs) == 1 and not gates:
            entering[:] = outputs
        return [outputs[index] for index in self.wiring.task_outputs], gates

    def gate_weights(self) -> list[nn.Parameter]:
        """The weight matrices of all gates and self gates, biases apart."""
        return [
            parameter
            for level in self.levels
            for part in (level.gates, level.self_gates)
            for name, parameter in part.named_parameters()  # type: ignore[union-attr]
            if name.endswith("weight")
        ]


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors without repeated objects, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def _aliased(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A view of each, the same for the same object."""
    views = {id(tensor): tensor.view_as(tensor) for tensor in tensors}
    return [views[id(tensor)] for tensor in tensors]
