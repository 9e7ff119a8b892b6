"""Which levels a kind can be built from; errors name the level and the remedy."""

from collections.abc import Sequence

from ple.wiring import LevelSpec


def check_widths(levels: Sequence[LevelSpec]) -> None:
    """Counts and widths that no kind can be built from."""
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
        if min(level.shared_experts, *level.task_experts, *level.group_experts) < 0:
            raise ValueError(f"{where}: an expert count is negative")
        if not level.hidden or min(level.hidden) < 1:
            raise ValueError(f"{where}: `hidden` needs at least one width, each at least 1")
        if level.shared_hidden is not None and level.shared_hidden[-1:] != level.hidden[-1:]:
            raise ValueError(
                f"{where}: `shared_hidden` must end in width {level.hidden[-1]} as `hidden` does,"
                " because gates add shared and task experts"
            )


def check_shared_only(kind: str, levels: Sequence[LevelSpec]) -> None:
    """moe, mmoe: shared experts and no others."""
    for number, level in enumerate(levels, start=1):
        if level.shared_experts == 0 or any(level.task_experts):
            raise ValueError(
                f"level {number}: kind {kind!r} has shared experts only, at least one; set"
                " `shared_experts`, and `task_experts` to 0"
            )
        if level.shared_hidden is not None:
            raise ValueError(
                f"level {number}: `shared_hidden` has no effect with kind {kind!r}; use `hidden`"
            )


def check_own_experts(kind: str, levels: Sequence[LevelSpec]) -> int:
    """adatt, stem: every task has experts of its own. Returns the number of tasks."""
    for number, level in enumerate(levels, start=1):
        if min(level.task_experts) == 0:
            raise ValueError(
                f"level {number}: kind {kind!r} needs at least one expert of each task's own"
            )
    return len(levels[0].task_experts)


def check_ple(levels: Sequence[LevelSpec]) -> int:
    """cgc, ple: every stream is made and read. Returns the number of tasks."""
    for number, level in enumerate(levels, start=1):
        where = f"level {number}"
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
    return len(levels[0].task_experts)


def check_home(levels: Sequence[LevelSpec], groups: Sequence[Sequence[int]], tasks: int) -> None:
    """home: two levels, tasks in groups, and experts of every owner."""
    if len(levels) != 2:
        raise ValueError(
            f"kind 'home' has two levels (meta experts, then experts), not {len(levels)}"
        )
    if sorted(task for members in groups for task in members) != list(range(tasks)):
        raise ValueError("kind 'home' needs `groups` that hold each task exactly once")
    if not all(groups):
        raise ValueError("kind 'home': a group without tasks has no effect; remove it")
    for number, level in enumerate(levels, start=1):
        if len(level.group_experts) != len(groups):
            raise ValueError(f"level {number}: `group_experts` needs one count per group")
        if min(level.shared_experts, *level.group_experts) == 0:
            raise ValueError(
                f"level {number}: kind 'home' needs at least one shared expert and one per group"
            )
        if level.shared_hidden is not None:
            raise ValueError(f"level {number}: `shared_hidden` has no effect with kind 'home'")
    if any(levels[0].task_experts) or min(levels[1].task_experts) == 0:
        raise ValueError(
            "kind 'home': `task_experts` are 0 on level 1, which has meta experts of groups, and at"
            " least 1 on level 2"
        )
