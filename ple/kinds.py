"""The kinds of multi-task model, each a wiring of the same experts, gates and streams.

What a level's counts mean: T tasks, m_k = ``task_experts[k]``, m_s = ``shared_experts``,
m_g = ``group_experts[g]``.

single_task    One level without counts: an MLP per task, which reads a feature vector of its own.
shared_bottom  One level without counts: one MLP that every tower reads (Caruana 1997).
moe            m_s experts and one gate for all tasks, a stack of any depth (OMoE: J. Ma et al.,
               KDD 2018, section 3; stacked: Eigen et al., arXiv 1312.4314).
mmoe           m_s experts and a gate per task (J. Ma et al., KDD 2018, equations 5 to 7). Of
               several levels, all but the last have a gate for each expert of the next level, which
               reads that gate's mixture; every gate selects by the feature vector (the multi-level
               MMoE that AdaTT, arXiv 2304.04959, compares against).
cgc, ple       See :mod:`ple.extraction`; CGC has one level.
adatt          m_k and m_s experts; every task's gate, and the shared one's, mixes all experts, and
               the unit's own (native) experts are added once more by a linear combination with
               learned weights (D. Li et al., KDD 2023, arXiv 2304.04959, section 3.2: AllExpGF and
               NativeExpLF). m_s = 0 is AdaTT-sp.
home           Two levels (X. Wang et al., arXiv 2408.05430). Level 1: m_s and m_g meta experts on
               the features; group g's gate mixes its own and the shared ones, the shared gate all,
               and the features as they are select. Level 2: m_s, m_g and m_k experts on the
               streams of their owner (a task's on its group's); a task's gate, selected by its
               group's stream and the shared one, mixes its own, its group's and the shared ones.
               On both levels a feature gate of each owner scales what its experts read, and self
               gates add every unit's own experts. Verified against the paper's abstract, not its
               equations: see :func:`_home` for what that leaves open.
stem           m_k and m_s experts on embeddings of their own (L. Su et al., AAAI 2024, arXiv
               2308.13537): task k's gate, selected by x_k + x_s, mixes all experts, but gradients
               pass to task k's and the shared ones only (all forward, task-specific backward).
"""

from collections.abc import Callable, Mapping, Sequence

from ple.kind_checks import (
    check_home,
    check_own_experts,
    check_ple,
    check_shared_only,
    check_widths,
)
from ple.wiring import SHARED, Bank, LevelSpec, LevelWiring, Output, Owner, Wiring

Groups = Sequence[Sequence[int]]


def wire(kind: str, levels: Sequence[LevelSpec], groups: Groups = ()) -> Wiring:
    """The wiring of a kind.

    Args:
        kind: key of :data:`KINDS`.
        levels: the levels, first first.
        groups: home only: the tasks of each group; every task is in one.

    Raises:
        ValueError: unknown kind, or levels from which it cannot be built.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if groups and kind != "home":
        raise ValueError(f"`groups` has no effect with kind {kind!r}; it belongs to 'home'")
    check_widths(levels)
    if kind == "home":
        return _home(levels, groups)
    for number, level in enumerate(levels, start=1):
        if level.group_experts:
            raise ValueError(
                f"level {number}: `group_experts` has no effect with kind {kind!r}; it belongs to"
                " 'home'"
            )
    return KINDS[kind](levels)


def _single_task(levels: Sequence[LevelSpec]) -> Wiring:
    level, tasks = _bottom("single_task", levels)
    banks = tuple(Bank(Owner("task", k), 1, level.hidden, k) for k in range(tasks))
    outputs = tuple(Output(Owner("task", k), (k,), gated=False) for k in range(tasks))
    every = tuple(range(tasks))
    return Wiring((_level(level, banks, outputs),), every, every)


def _shared_bottom(levels: Sequence[LevelSpec]) -> Wiring:
    level, tasks = _bottom("shared_bottom", levels)
    wired = _level(level, (Bank(SHARED, 1, level.hidden, 0),), (Output(SHARED, (0,), gated=False),))
    return Wiring((wired,), (0,), (0,) * tasks)


def _moe(levels: Sequence[LevelSpec]) -> Wiring:
    check_shared_only("moe", levels)
    output = Output(SHARED, (0,), (0,), previous=0)
    wired = [
        _level(level, (Bank(SHARED, level.shared_experts, level.hidden, 0),), (output,))
        for level in levels
    ]
    return Wiring(tuple(wired), (0,), (0,) * len(levels[0].task_experts))


def _mmoe(levels: Sequence[LevelSpec]) -> Wiring:
    """Stream 0 is the feature vector, handed on by every level; the others feed one expert each."""
    check_shared_only("mmoe", levels)
    tasks = len(levels[0].task_experts)
    wired = []
    for index, level in enumerate(levels):
        if index == 0:
            banks = [Bank(SHARED, level.shared_experts, level.hidden, 0)]
        else:
            banks = [
                Bank(Owner("expert", e), 1, level.hidden, 1 + e)
                for e in range(level.shared_experts)
            ]
        last = index == len(levels) - 1
        count = tasks if last else levels[index + 1].shared_experts
        owners = [Owner("task" if last else "expert", number) for number in range(count)]
        every = tuple(range(len(banks)))
        wired.append(_level(level, banks, [Output(owner, every, (0,)) for owner in owners]))
    return Wiring(tuple(wired), (0,), tuple(range(tasks)), keeps_input=True)


def _ple(levels: Sequence[LevelSpec]) -> Wiring:
    tasks = check_ple(levels)
    exists = shared_gates(levels)
    wired = []
    for level, shared_gate in zip(levels, exists, strict=True):
        banks, of_task, shared = _task_and_shared_banks(level)
        outputs = [
            Output(Owner("task", k), of_task[k] + shared, (k,), previous=k) for k in range(tasks)
        ]
        if shared_gate:
            outputs.append(Output(SHARED, tuple(range(len(banks))), (tasks,), previous=tasks))
        wired.append(_level(level, banks, outputs))
    return Wiring(tuple(wired), (0,) * (tasks + 1), tuple(range(tasks)))


def _cgc(levels: Sequence[LevelSpec]) -> Wiring:
    if len(levels) != 1:
        raise ValueError(f"kind 'cgc' has one level, not {len(levels)}; 'ple' stacks several")
    return _ple(levels)


def _adatt(levels: Sequence[LevelSpec]) -> Wiring:
    tasks = check_own_experts("adatt", levels)
    exists = shared_gates(levels)
    wired = []
    for level, shared_gate in zip(levels, exists, strict=True):
        banks, of_task, shared = _task_and_shared_banks(level)
        every = tuple(range(len(banks)))
        outputs = [
            Output(Owner("task", k), every, (k,), native=of_task[k][0], previous=k)
            for k in range(tasks)
        ]
        if shared_gate:
            native = shared[0] if shared else None
            outputs.append(Output(SHARED, every, (tasks,), native=native, previous=tasks))
        wired.append(_level(level, banks, outputs))
    return Wiring(tuple(wired), (0,) * (tasks + 1), tuple(range(tasks)))


def _stem(levels: Sequence[LevelSpec]) -> Wiring:
    tasks = check_own_experts("stem", levels)
    for number, level in enumerate(levels, start=1):
        if level.shared_experts == 0:
            raise ValueError(f"level {number}: kind 'stem' needs at least one shared expert")
    wired = []
    for index, level in enumerate(levels):
        banks, of_task, _ = _task_and_shared_banks(level)
        every = tuple(range(len(banks)))
        outputs = [
            Output(
                Owner("task", k),
                every,
                (k, tasks),
                stopped=tuple(b for j in range(tasks) if j != k for b in of_task[j]),
                previous=k,
            )
            for k in range(tasks)
        ]
        if index < len(levels) - 1:
            outputs.append(Output(SHARED, every, (tasks,), previous=tasks))
        wired.append(_level(level, banks, outputs))
    return Wiring(tuple(wired), tuple(range(tasks + 1)), tuple(range(tasks)))


def _home(levels: Sequence[LevelSpec], groups: Groups) -> Wiring:
    """HoME, as its abstract and independent implementations of it have it.

    Agreed on: groups of tasks, two levels, normalised experts with Swish, low-rank feature gates,
    self gates added as a residual. Not verified against the paper: feature gates before level 2 as
    before level 1 (two implementations of three), one for each owner and not for each expert; that
    gates are selected by streams before the feature gate; and the form of
    :class:`ple.interaction.FeatureGate`.
    """
    tasks = len(levels[0].task_experts)
    check_home(levels, groups, tasks)
    meta, last = levels
    count = len(groups)
    meta_banks = [
        Bank(Owner("group", g), meta.group_experts[g], meta.hidden, 0, True) for g in range(count)
    ] + [Bank(SHARED, meta.shared_experts, meta.hidden, 0, True)]
    meta_outputs = [
        Output(Owner("group", g), (g, count), (0,), self_gated=g) for g in range(count)
    ] + [Output(SHARED, tuple(range(count + 1)), (0,), self_gated=count)]
    group_of = {task: g for g, members in enumerate(groups) for task in members}
    banks = [
        *(
            Bank(Owner("task", k), last.task_experts[k], last.hidden, group_of[k], True)
            for k in range(tasks)
        ),
        *(
            Bank(Owner("group", g), last.group_experts[g], last.hidden, g, True)
            for g in range(count)
        ),
        Bank(SHARED, last.shared_experts, last.hidden, count, True),
    ]
    outputs = [
        Output(
            Owner("task", k),
            (k, tasks + group_of[k], tasks + count),
            (group_of[k], count),
            joined=True,
            self_gated=k,
        )
        for k in range(tasks)
    ]
    wired = (_level(meta, meta_banks, meta_outputs), _level(last, banks, outputs))
    return Wiring(wired, (0,), tuple(range(tasks)))


KINDS: Mapping[str, Callable[[Sequence[LevelSpec]], Wiring]] = {
    "single_task": _single_task,
    "shared_bottom": _shared_bottom,
    "moe": _moe,
    "mmoe": _mmoe,
    "cgc": _cgc,
    "ple": _ple,
    "adatt": _adatt,
    "home": lambda levels: _home(levels, ()),
    "stem": _stem,
}


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


def _level(level: LevelSpec, banks: Sequence[Bank], outputs: Sequence[Output]) -> LevelWiring:
    return LevelWiring(tuple(banks), tuple(outputs), level.gate_hidden, level.gate_bias)


def _task_and_shared_banks(
    level: LevelSpec,
) -> tuple[list[Bank], list[tuple[int, ...]], tuple[int, ...]]:
    """Banks of the tasks that have experts, then the shared one; positions by task, and shared."""
    banks: list[Bank] = []
    of_task: list[tuple[int, ...]] = []
    for task, own in enumerate(level.task_experts):
        of_task.append((len(banks),) if own else ())
        if own:
            banks.append(Bank(Owner("task", task), own, level.hidden, task))
    shared: tuple[int, ...] = ()
    if level.shared_experts:
        shared = (len(banks),)
        hidden = level.shared_hidden or level.hidden
        banks.append(Bank(SHARED, level.shared_experts, hidden, len(level.task_experts)))
    return banks, of_task, shared


def _bottom(kind: str, levels: Sequence[LevelSpec]) -> tuple[LevelSpec, int]:
    if len(levels) != 1:
        raise ValueError(f"kind {kind!r} has one level, not {len(levels)}; lengthen its `hidden`")
    level = levels[0]
    if level.shared_experts or any(level.task_experts):
        raise ValueError(f"kind {kind!r} has no expert counts; leave them 0")
    if level.gate_hidden or level.gate_bias or level.shared_hidden:
        raise ValueError(f"kind {kind!r} has no gates and one form of expert; remove the settings")
    return level, len(level.task_experts)
