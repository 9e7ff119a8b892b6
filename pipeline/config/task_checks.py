"""What the tasks of an experiment ask of one another."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.expressions import implies, parse_rule
from pipeline.config.tasks import TaskConfig

_OF_OTHERS = (
    "product_of",
    "propensity",
    "propensity_floor",
    "transfer_from",
    "transfer_penalty",
)
# What shapes a task's own loss and nothing else.
_OF_OWN_LOSS = (
    "propensity",
    "transfer_penalty",
    "label_smoothing",
    "positive_weight",
    "focal_gamma",
)


def check_tasks(tasks: Sequence[TaskConfig]) -> None:
    """Raises ValueError where tasks are listed twice or name others that cannot serve them.

    A task names tasks that stand above it only, so there are no cycles.
    """
    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"tasks listed twice: {', '.join(repeated)}")
    for position, task in enumerate(tasks):
        above = {other.name: other for other in tasks[:position]}
        for name in task.product_of or ():
            _check_factor(task, _named(task, "product_of", name, above, names))
        if len(set(task.product_of or ())) < len(task.product_of or ()):
            raise ValueError(f"task {task.name!r}: `product_of` names a task twice")
        if task.propensity is not None:
            _check_propensity(task, _named(task, "propensity", task.propensity, above, names))
        if task.transfer_from is not None:
            _check_transfer(task, _named(task, "transfer_from", task.transfer_from, above, names))
    _check_weights(tasks)
    sampled = [task.name for task in tasks if task.negatives_kept is not None]
    if len(sampled) > 1:
        raise ValueError(
            f"`negatives_kept` of {' and '.join(sampled)}: the negatives of one task can be sampled"
        )


def on_its_own(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings without those that need other tasks: a plain task with a tower."""
    kept = {key: value for key, value in task.items() if key not in _OF_OTHERS}
    if kept.get("weight") == 0:
        del kept["weight"]
    return kept


def _named(
    task: TaskConfig, key: str, name: str, above: dict[str, TaskConfig], names: list[str]
) -> TaskConfig:
    if name in above:
        return above[name]
    if name == task.name:
        raise ValueError(f"task {name!r}: `{key}` names the task itself")
    if name in names:
        raise ValueError(
            f"task {task.name!r}: `{key}` names {name!r}, which is listed below it: list {name!r} "
            "first (tasks cannot depend on one another in a circle)"
        )
    raise ValueError(f"task {task.name!r}: `{key}`: there is no task {name!r}")


def _check_factor(task: TaskConfig, factor: TaskConfig) -> None:
    if not factor.is_binary or not factor.has_tower:
        raise ValueError(
            f"task {task.name!r}: `product_of` needs binary tasks with towers, {factor.name!r} has "
            + (f"loss: {factor.loss}" if not factor.is_binary else "none")
        )


def _check_propensity(task: TaskConfig, source: TaskConfig) -> None:
    if not source.is_binary:
        raise ValueError(
            f"task {task.name!r}: `propensity` needs a binary task, {source.name!r} has loss: "
            f"{source.loss}"
        )
    label = parse_rule(source.label_text)
    if task.space is None or not implies(parse_rule(task.space), label):
        raise ValueError(
            f"task {task.name!r}: `propensity: {source.name}` weighs rows by the chance to be in "
            f"the space, so `space` must be the label of {source.name!r}, or that & more: space: "
            f"{source.label or source.name}"
        )


def _check_transfer(task: TaskConfig, source: TaskConfig) -> None:
    if not source.has_tower:
        raise ValueError(
            f"task {task.name!r}: `transfer_from: {source.name}`: that task has no tower"
        )
    if task.transfer_penalty == 0:
        return
    if not (task.is_binary and source.is_binary):
        raise ValueError(
            f"task {task.name!r}: the penalty compares probabilities, and not both tasks are "
            "binary; set transfer_penalty: 0"
        )
    if task.space != source.space:
        raise ValueError(
            f"task {task.name!r}: its probability is bounded by that of {source.name!r} only on "
            f"the same rows; give both one `space` (and a label that counts both events, such as "
            "click & convert), or set transfer_penalty: 0"
        )


def _check_weights(tasks: Sequence[TaskConfig]) -> None:
    trained = {name for task in tasks if task.weight > 0 for name in task.product_of or ()}
    for task in tasks:
        if task.weight == 0 and task.name not in trained:
            raise ValueError(
                f"task {task.name!r}: `weight: 0` trains nothing; give it a weight, or a task with "
                "`product_of` that has this one among its factors"
            )
        for key in _OF_OWN_LOSS if task.weight == 0 else ():
            if getattr(task, key):
                raise ValueError(f"task {task.name!r}: `{key}` has no effect with `weight: 0`")
