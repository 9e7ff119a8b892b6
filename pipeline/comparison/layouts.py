"""The experiment of each kind, derived from the config's own by the same rules for everybody.

With the config's levels l = 1 … L, m_s shared experts and m_k experts of task k at level 1, and the
hidden widths of all levels in a row as "the whole depth":

| kind | levels |
| --- | --- |
| the config's own | as they stand |
| ple, adatt, stem | the config's levels |
| home | two, a group for each task: m_s shared and m_k group experts of level 1's depth; then \
m_s shared, m_k task and one group expert each, of the remaining depth (or level 1's again) |
| cgc | one: m_k and m_s as at level 1, the whole depth |
| mmoe, moe | one: m_s + Σ m_k shared experts, no task experts, the whole depth |
| shared_bottom | one: a single MLP of the whole depth |
| single_task | one: a single MLP of the whole depth, in a model for each task |

Towers, activations, dropout, optimizers and schedule are the config's for all. ``compare.kinds``
then sets what a kind has of its own. Widths are scaled to the budget afterwards, see ``budget``.
Embeddings are the config's for all, or with ``compare.tables: same_parameters`` narrower where a
kind has several sets of tables (a set for each task in single_task, one more in stem).
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import ConfigError, Experiment
from pipeline.config.features import FeaturesConfig
from pipeline.config.load import assign, parse_experiment
from pipeline.config.model import LevelConfig
from pipeline.config.task_checks import on_its_own
from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.selection import directions_of

SINGLE_TASK = "single_task"
_LIKE_PLE = ("ple", "adatt", "stem")
_FUSED = ("moe", *_LIKE_PLE)
_GATE_KEYS = ("gate_hidden", "gate_bias")


def kind_experiment(experiment: Experiment, kind: str, task: str | None = None) -> Experiment:
    """The experiment of one kind, widths not yet scaled.

    Args:
        experiment: the config's own.
        kind: kind of model.
        task: for ``single_task``, the task whose model is meant.

    Raises:
        ConfigError: the levels say nothing for this kind, or ``compare.kinds`` is wrong.
    """
    # Only what was set: each kind has defaults of its own, and refuses settings it does not read.
    tree = experiment.model_dump(mode="json", exclude_unset=True)
    tree.pop("compare", None)
    if kind != experiment.model.kind or kind == SINGLE_TASK:
        tree["model"] = _kind_model(experiment, tree["model"], kind)
    if experiment.compare.tables == "same_parameters":
        sets = _table_sets(experiment, experiment.model.kind) / _table_sets(experiment, kind)
        tree["features"] = _with_narrower_tables(experiment.features, tree["features"], sets)
    for key, value in experiment.compare.settings_of(kind).items():
        assign(tree, key, value, f"compare.kinds.{kind}.{key}")
    if task is not None:
        _keep_one_task(tree, experiment, task)
    return parse_experiment(tree, source=f"compare, kind {kind}")


def has_own_widths(experiment: Experiment, kind: str) -> bool:
    """Whether the config gives this kind levels that are to stay as they are."""
    return any(
        key == "model" or key.startswith("model.levels")
        for key in experiment.compare.settings_of(kind)
    )


def own_metric(experiment: Experiment, task: TaskConfig) -> str:
    """By what a single-task model of `task` stops: the config's metric, of this task alone.

    ``mean_auc`` (or ``mean_gauc``) is the task's own AUC, ``OTHER/METRIC`` its own METRIC, and
    either its loss where it has no such metric; ``joint_loss`` is its loss.
    """
    name = experiment.train.early_stopping.metric
    metric = name.removeprefix("mean_").rpartition("/")[2]
    known = directions_of(task, grouped=experiment.evaluation.group_by is not None)
    return f"{task.name}/{metric}" if metric in known else "joint_loss"


def _kind_model(experiment: Experiment, tree: dict[str, Any], kind: str) -> dict[str, Any]:
    model = experiment.model
    tasks = [task for task in experiment.tasks if task.has_tower]
    first = model.levels[0]
    if kind in (*_LIKE_PLE, "cgc", "home") and not _task_experts(first):
        raise ConfigError(
            f"compare: {kind} has experts of each task, and model.levels of a {model.kind} has "
            f"none to go by; write its levels as compare.kinds.{kind}: {{model.levels: [...]}}"
        )
    levels = [{k: v for k, v in level.items() if k != "group_experts"} for level in tree["levels"]]
    depth = [width for level in model.levels for width in level.hidden]
    gates = {key: levels[0][key] for key in _GATE_KEYS if key in levels[0]}
    if kind in (SINGLE_TASK, "shared_bottom"):
        levels = [{"hidden": depth}]
    elif kind in ("moe", "mmoe"):
        levels = [{"shared_experts": _experts(first, tasks), "hidden": depth, **gates}]
    elif kind in ("cgc", "home") and first.shared_hidden is not None:
        raise ConfigError(
            f"compare: shared_hidden leaves open how deep the experts of {kind} are; write its "
            f"levels as compare.kinds.{kind}: {{model.levels: [...]}}"
        )
    elif kind == "cgc":
        levels = [{**levels[0], "hidden": depth}]
    elif kind == "home":
        counts = {"shared_experts": first.shared_experts, **gates}
        own = levels[0]["task_experts"]
        rest = depth[len(first.hidden) :] or first.hidden
        levels = [
            {**counts, "group_experts": own, "hidden": first.hidden},
            {**counts, "group_experts": 1, "task_experts": own, "hidden": rest},
        ]
    kept = {k: v for k, v in tree.items() if k not in _dropped(kind, len(levels))}
    if kind == "home":
        kept["groups"] = {task.name: [task.name] for task in tasks}
    return {**kept, "kind": kind, "levels": levels}


def _table_sets(experiment: Experiment, kind: str) -> int:
    if kind == SINGLE_TASK:
        return len(experiment.tasks)
    return 1 + sum(task.has_tower for task in experiment.tasks) if kind == "stem" else 1


def _with_narrower_tables(
    features: FeaturesConfig, tree: dict[str, Any], factor: float
) -> dict[str, Any]:
    """The features with every embedding width times a factor, to the nearest multiple of 4."""

    def scaled(width: int) -> int:
        # Kernels take widths of whole vectors of 4.
        return width if factor == 1 else max(4, 4 * round(factor * width / 4))

    result = {**tree, "embedding_dim": scaled(features.embedding_dim)}
    for section in ("categorical", "crosses", "numeric"):
        result[section] = [
            {**entry, "dim": scaled(entry["dim"])} if entry.get("dim") else entry
            for entry in tree.get(section, [])
        ]
    return result


def _dropped(kind: str, levels: int) -> set[str]:
    """Settings of the model section that a kind does not read."""
    dropped = {"groups"}
    if kind != "home":
        dropped.add("feature_gate")
    if kind not in _FUSED or levels == 1:
        dropped.add("fusion")
    if kind in (SINGLE_TASK, "shared_bottom"):
        dropped.add("gate_l2")
    return dropped


def _task_experts(level: LevelConfig) -> bool:
    counts = level.task_experts
    return any(counts.values()) if isinstance(counts, dict) else counts > 0


def _experts(level: LevelConfig, tasks: Sequence[TaskConfig]) -> int:
    counts = level.task_experts
    of_tasks = sum(counts.values()) if isinstance(counts, dict) else counts * len(tasks)
    return level.shared_experts + of_tasks


def _keep_one_task(tree: dict[str, Any], experiment: Experiment, name: str) -> None:
    task = next(t for t in experiment.tasks if t.name == name)
    tree["tasks"] = [on_its_own(t) for t in tree["tasks"] if t["name"] == name]
    # Nothing is left to balance.
    tree.pop("balance", None)
    stopping = tree.setdefault("train", {}).setdefault("early_stopping", {})
    stopping["metric"] = own_metric(experiment, task)
    for level in tree["model"]["levels"]:
        if isinstance(level.get("task_experts"), dict):
            level["task_experts"] = {name: level["task_experts"].get(name, 0)}
