"""The extraction network (CGC) and its progressive stack (PLE).

H. Tang, J. Liu, M. Zhao, X. Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning
Model for Personalized Recommendations. RecSys 2020.

Shape suffixes: B rows, E experts, D width of a stream, T tasks, S streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ple.experts import ExpertBank
from ple.gates import Gate, mix_batched, mix_looped


@dataclass(frozen=True)
class LevelSpec:
    """One level of the stack.

    Attributes:
        shared_experts: m_s, experts that every task's gate mixes; 0 is allowed where each task has
            its own.
        task_experts: m_k for each task in order; 0 is allowed where there are shared experts.
        hidden: widths of an expert's layers; the last is the width of the level's output.
        shared_hidden: the same for shared experts where it differs; it ends in the same width.
        gate_hidden: widths of the gates' hidden layers; empty for linear gates.
        gate_bias: bias in the gates' last layer.
    """

    shared_experts: int
    task_experts: tuple[int, ...]
    hidden: tuple[int, ...]
    shared_hidden: tuple[int, ...] | None = None
    gate_hidden: tuple[int, ...] = ()
    gate_bias: bool = False

    @property
    def out_width(self) -> int:
        return self.hidden[-1]

    @property
    def experts(self) -> int:
        """Experts of all tasks and the shared ones."""
        return self.shared_experts + sum(self.task_experts)


def check_levels(levels: Sequence[LevelSpec]) -> None:
    """Raises ValueError, naming level and remedy, if no PLE can be built from ``levels``."""
    if not levels:
        raise ValueError("`levels` is empty; give at least one level")
    tasks = len(levels[0].task_experts)
    for number, level in enumerate(levels, start=1):
        where = f"level {number}"
        if not level.task_experts:
            raise ValueError(f"{where}: `task_experts` is empty; give one count per task")
        if len(level.task_experts) != tasks:
            raise ValueError(
                f"{where}: `task_experts` has {len(level.task_experts)} counts, level 1 has"
                f" {tasks}; give one count per task on every level"
            )
        if level.shared_experts < 0 or min(level.task_experts) < 0:
            raise ValueError(f"{where}: an expert count is negative")
        if not level.hidden or min(level.hidden) < 1:
            raise ValueError(f"{where}: `hidden` needs at least one width, each at least 1")
        if level.shared_hidden is not None and level.shared_hidden[-1:] != level.hidden[-1:]:
            raise ValueError(
                f"{where}: `shared_hidden` must end in width {level.hidden[-1]} as `hidden` does,"
                " because gates add shared and task experts"
            )
        for task, own in enumerate(level.task_experts):
            if own == 0 and level.shared_experts == 0:
                raise ValueError(
                    f"{where}: task {task} has no experts; give it one, or a shared one"
                )
            if number > 1 and own == 0 and level.shared_experts == 1:
                raise ValueError(
                    f"{where}: task {task} has no experts of its own and one shared expert, so its"
                    f" stream from level {number - 1} would be read by nothing; give it an expert"
                    " or add a shared one"
                )


def shared_gates(levels: Sequence[LevelSpec]) -> list[bool]:
    """For each level, whether it has a shared gate: only if the next level reads the shared stream.

    The next level does so through shared experts, or as the selector of its own shared gate. The
    last level never has one.
    """
    exists = [False] * len(levels)
    for index in range(len(levels) - 2, -1, -1):
        following = levels[index + 1]
        selects = exists[index + 1] and following.experts > 1
        exists[index] = following.shared_experts > 0 or selects
    return exists


class ExtractionNetwork(nn.Module):
    """One level: customised gate control (PLE paper, section 4.1), extended by the shared gate.

    Task k's experts read stream x_k and the shared experts read stream x_s. Task k's gate, with
    selector x_k, mixes task k's experts and the shared ones (in this order). The shared gate, with
    selector x_s, mixes the experts of task 0, task 1, … and the shared ones (in this order).

    Args:
        spec: the level.
        in_width: width of every input stream.
        shared_gate: build the shared gate; without it the level returns no shared stream.
        activation, normalization, dropout: of the experts, see :class:`ple.experts.ExpertBank`.
        fan_in: input columns that carry a signal, the first ones; absent = all.
    """

    def __init__(
        self,
        spec: LevelSpec,
        in_width: int,
        shared_gate: bool,
        activation: str = "relu",
        normalization: str = "none",
        dropout: float = 0.0,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()

        def bank(experts: int, hidden: tuple[int, ...]) -> ExpertBank:
            return ExpertBank(experts, in_width, hidden, activation, normalization, dropout, fan_in)

        def gate(experts: int) -> Gate:
            return Gate(in_width, experts, spec.gate_hidden, spec.gate_bias, activation, fan_in)

        tasks = len(spec.task_experts)
        self.task_experts = nn.ModuleList(bank(own, spec.hidden) for own in spec.task_experts)
        self.shared_experts = bank(spec.shared_experts, spec.shared_hidden or spec.hidden)
        self.task_gates = nn.ModuleList(
            gate(own + spec.shared_experts) for own in spec.task_experts
        )
        self.shared_gate = gate(spec.experts) if shared_gate else None
        # Which banks each gate mixes; bank k is task k's, the last one is shared.
        self._members: list[Sequence[int]] = [(task, tasks) for task in range(tasks)]
        if shared_gate:
            self._members.append(tuple(range(tasks + 1)))

    def forward(
        self, tasks_TBD: Sequence[Tensor], shared_BD: Tensor, looped: bool | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Streams in, streams out.

        Args:
            tasks_TBD: T streams x_k, each [B, D].
            shared_BD: x_s; not read where the level has neither shared experts nor a shared gate.
            looped: form of the computation; absent = looped on a CPU, batched elsewhere.

        Returns:
            The new task streams, and after them the shared stream if there is a shared gate; and
            for each of these streams the gate weights [B, E].
        """
        streams = [*tasks_TBD, shared_BD]
        gates = [gate(x_BD) for gate, x_BD in zip(self._gates(), streams, strict=False)]
        banks = list(zip([*self.task_experts, self.shared_experts], streams, strict=True))
        if shared_BD.device.type == "cpu" if looped is None else looped:
            outputs = mix_looped(gates, [bank.looped(x) for bank, x in banks], self._members)
        else:
            outputs = mix_batched(gates, [bank.batched(x) for bank, x in banks], self._members)
        return outputs, gates

    def _gates(self) -> list[nn.Module]:
        return [*self.task_gates, *([] if self.shared_gate is None else [self.shared_gate])]


class ProgressiveExtraction(nn.Module):
    """A stack of extraction networks (PLE paper, section 4.2); with one level it is CGC.

    Level 1 reads the feature vector in every stream. The last level has no shared gate; an earlier
    level has one only if the next level reads the shared stream, so that no parameter is dead.

    Args:
        levels: the levels, first first.
        in_width: width of the feature vector.
        activation, normalization, dropout: of the experts, see :class:`ple.experts.ExpertBank`.
        fan_in: columns of the feature vector that carry a signal, the first ones; absent = all.

    Raises:
        ValueError: no PLE can be built from ``levels`` (see :func:`check_levels`).
    """

    def __init__(
        self,
        levels: Sequence[LevelSpec],
        in_width: int,
        activation: str = "relu",
        normalization: str = "none",
        dropout: float = 0.0,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        check_levels(levels)
        self.tasks = len(levels[0].task_experts)
        self.out_width = levels[-1].out_width
        widths = [in_width, *(level.out_width for level in levels[:-1])]
        self.levels = nn.ModuleList(
            ExtractionNetwork(
                spec, width, shared_gate, activation, normalization, dropout, fan_in_level
            )
            for spec, width, shared_gate, fan_in_level in zip(
                levels, widths, shared_gates(levels), [fan_in] + [None] * len(levels), strict=False
            )
        )

    def forward(
        self, x_BD: Tensor, looped: bool | None = None
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Feature vector to the T task streams of the last level, and the gates of every level.

        ``gates[l][k]`` is [B, E] for task k; the shared gate's, where level l has one, comes last.
        ``looped`` as in :meth:`ExtractionNetwork.forward`.
        """
        tasks_TBD, shared_BD = [x_BD] * self.tasks, x_BD
        gates: list[list[Tensor]] = []
        for level in self.levels:
            streams, level_gates = level(tasks_TBD, shared_BD, looped)
            # A level that reads no shared stream is handed one all the same: the last task's.
            tasks_TBD, shared_BD = streams[: self.tasks], streams[-1]
            gates.append(level_gates)
        return tasks_TBD, gates
