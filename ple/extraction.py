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

from collections.abc import Sequence

from torch import Tensor, nn

from ple.expert_blocks import Scope
from ple.fusion import Fusion, StreamShape, check_fusion
from ple.level import ExpertOptions, ExtractionNetwork
from ple.selectors import distinct
from ple.wiring import Wiring


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
            order of its outputs, for looking at: on a CPU they may have no gradient.
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


def _aliased(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A view of each, the same for the same object."""
    views = {id(tensor): tensor.view_as(tensor) for tensor in tensors}
    return [views[id(tensor)] for tensor in tensors]
