"""Plans of a multi-task body: which experts read which stream, and which gate mixes which experts.

A kind of model (:mod:`ple.kinds`) is nothing but such a plan; :mod:`ple.level` builds and runs
any of them from the same experts and gates.

Shape suffixes: T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LevelSpec:
    """One level as the user counts it; what a count means to each kind, see :mod:`ple.kinds`.

    Attributes:
        shared_experts: m_s, experts of all tasks.
        task_experts: m_k for each task in order.
        hidden: widths of an expert's layers; the last is the width of the level's output.
        shared_hidden: the same for shared experts where it differs; it ends in the same width.
        gate_hidden: widths of the gates' hidden layers; empty for linear gates.
        gate_bias: bias in the gates' last layer.
        group_experts: experts of each group of tasks in order (HoME).
    """

    shared_experts: int
    task_experts: tuple[int, ...]
    hidden: tuple[int, ...]
    shared_hidden: tuple[int, ...] | None = None
    gate_hidden: tuple[int, ...] = ()
    gate_bias: bool = False
    group_experts: tuple[int, ...] = ()

    @property
    def out_width(self) -> int:
        return self.hidden[-1]

    @property
    def experts(self) -> int:
        """Experts of all tasks and the shared ones."""
        return self.shared_experts + sum(self.task_experts)


@dataclass(frozen=True)
class Owner:
    """Whose experts or stream: ``task`` k, ``group`` g, ``shared``, or (streams) ``expert`` e."""

    kind: str
    number: int | None = None

    @property
    def key(self) -> str:
        """Its name in checkpoints."""
        return self.kind if self.number is None else f"{self.kind}_{self.number}"


SHARED = Owner("shared")


@dataclass(frozen=True)
class Bank:
    """Experts of one owner; all of them read one stream.

    Attributes:
        owner: whose they are.
        experts: how many, at least 1.
        hidden: widths of an expert's layers.
        reads: position of the stream they read.
        feature_gated: a feature gate of the owner's own scales what they read (HoME).
    """

    owner: Owner
    experts: int
    hidden: tuple[int, ...]
    reads: int
    feature_gated: bool = False


@dataclass(frozen=True)
class Output:
    """One stream that a level gives.

    Attributes:
        owner: whose stream it is.
        banks: positions of the banks it mixes; their experts in this order are the gate's columns.
        selectors: positions of the streams that select; several are added, or joined end to end.
        joined: join several selectors instead of adding them.
        gated: False for a bank of one expert whose output is taken as it is.
        stopped: banks whose outputs are mixed, but through which no gradient flows (STEM).
        native: bank whose experts' linear combination, with weights that no input moves, is added
            (AdaTT).
        self_gated: bank whose experts, mixed by a gate of their own, are added (HoME).
        previous: position of the stream this one continues, for the fusion between levels.
    """

    owner: Owner
    banks: tuple[int, ...]
    selectors: tuple[int, ...] = ()
    joined: bool = False
    gated: bool = True
    stopped: tuple[int, ...] = ()
    native: int | None = None
    self_gated: int | None = None
    previous: int | None = None


@dataclass(frozen=True)
class LevelWiring:
    """One level: its banks and what it gives, with the options of its gates."""

    banks: tuple[Bank, ...]
    outputs: tuple[Output, ...]
    gate_hidden: tuple[int, ...]
    gate_bias: bool

    @property
    def out_width(self) -> int:
        return self.banks[0].hidden[-1]

    def columns(self, output: Output) -> int:
        """Experts that the output mixes."""
        return sum(self.banks[bank].experts for bank in output.banks)


@dataclass(frozen=True)
class Wiring:
    """A whole body.

    Attributes:
        levels: first first.
        inputs: for each stream that enters level 1, the number of the feature vector it is.
        task_outputs: for each task in order, the output of the last level its tower reads.
        keeps_input: every level hands on stream 0, the feature vector, before its outputs (MMoE).
    """

    levels: tuple[LevelWiring, ...]
    inputs: tuple[int, ...]
    task_outputs: tuple[int, ...]
    keeps_input: bool = False

    @property
    def views(self) -> int:
        """Feature vectors the body reads."""
        return max(self.inputs) + 1


def expert_names(
    level: LevelWiring, output: Output, tasks: Sequence[str], groups: Sequence[str]
) -> tuple[str, ...]:
    """Labels of a gate's columns: the owner's name and the expert's number within its bank."""
    names: list[str] = []
    for bank in (level.banks[position] for position in output.banks):
        if bank.owner.kind == "expert":
            # One shared expert with a stream of its own.
            names.append(f"{SHARED.kind} {(bank.owner.number or 0) + 1}")
            continue
        owner = owner_name(bank.owner, tasks, groups)
        names += [f"{owner} {number + 1}" for number in range(bank.experts)]
    return tuple(names)


def owner_name(owner: Owner, tasks: Sequence[str], groups: Sequence[str]) -> str:
    """The owner in words: the task's or group's name, ``shared``, ``for expert 2``."""
    if owner.number is None:
        return owner.kind
    if owner.kind == "expert":
        return f"for expert {owner.number + 1}"
    return (tasks if owner.kind == "task" else groups)[owner.number]
