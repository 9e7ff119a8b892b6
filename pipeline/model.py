"""The experiment's model: configuration and fitted transforms → :class:`ple.Ranker`."""

from collections.abc import Sequence
from typing import Literal

import torch

import ple
from pipeline.config import ConfigError, Experiment
from pipeline.config.model import LevelConfig, ModelConfig
from pipeline.config.tasks import TaskConfig
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms


def build_ranker(
    experiment: Experiment, transforms: FeatureTransforms, device: str | torch.device
) -> ple.Ranker:
    """Builds the ranker with fresh weights.

    Args:
        experiment: its ``model`` and ``tasks`` sections say what to build.
        transforms: gives the embedding tables and the width of the dense input.
        device: where the embedding tables live; ``meta`` leaves their memory to be allocated by
            whoever shards them. The dense part is built on the CPU either way.
    """
    tables = tables_of(experiment, transforms)
    embeddings = ple.FeatureEmbeddings(tables, device=torch.device(device)) if tables else None
    return _ranker(experiment, transforms, embeddings)


def build_served_ranker(
    experiment: Experiment, transforms: FeatureTransforms, precision: ple.Precision
) -> ple.Ranker:
    """The ranker for scoring, over plain tables that need no TorchRec.

    Its weights are unset, on the meta device; :func:`ple.serving_state` makes them of the trained
    ones (``load_state_dict(..., assign=True)``).
    """
    tables = tables_of(experiment, transforms)
    ids = transforms.single_features, transforms.list_features
    with torch.device("meta"):
        embeddings = ple.ServingTables(tables, *ids, precision) if tables else None
        return _ranker(experiment, transforms, embeddings)


def tables_of(experiment: Experiment, transforms: FeatureTransforms) -> list[ple.FeatureTable]:
    """The tables of the experiment's model."""
    tasks = [task.name for task in experiment.tasks if task.has_tower]
    return feature_tables(experiment.model.kind, transforms.tables, tasks)


def _ranker(
    experiment: Experiment,
    transforms: FeatureTransforms,
    embeddings: "ple.FeatureEmbeddings | ple.ServingTables | None",
) -> ple.Ranker:
    model = experiment.model
    with_tower = [task for task in experiment.tasks if task.has_tower]
    tasks = [task.name for task in with_tower]
    groups = model.groups or {}
    gate, cross = model.feature_gate, model.interaction
    return ple.Ranker(
        embeddings,
        dense_width=len(transforms.dense_names),
        levels=[_level_spec(level, tasks, list(groups)) for level in model.levels],
        tower_hidden=[
            model.tower_hidden if task.tower_hidden is None else task.tower_hidden
            for task in with_tower
        ],
        activation=model.activation,
        normalization=model.normalization,
        input_dropout=model.input_dropout,
        expert_dropout=model.expert_dropout,
        tower_dropout=model.tower_dropout,
        kind=model.kind,
        groups=[[tasks.index(task) for task in members] for members in groups.values()],
        fusion=model.fusion,
        feature_gate=(2, 16) if gate is None else (gate.factors, gate.rank),
        cross=None if cross is None else ple.CrossSpec(cross.layers, cross.rank),
        gate_l2=model.gate_l2,
        task_names=tasks,
        group_names=list(groups),
        tower_outputs=[_loss(task).outputs for task in with_tower],
        transfer_from=[
            None if task.transfer_from is None else tasks.index(task.transfer_from)
            for task in with_tower
        ],
    )


def build_heads(tasks: Sequence[TaskConfig]) -> ple.Heads:
    """Losses and predictions of the tasks from the outputs of :func:`build_ranker`'s ranker."""
    names = [task.name for task in tasks]

    def number(name: str | None) -> int | None:
        return None if name is None else names.index(name)

    return ple.Heads(
        [
            ple.Head(
                loss=_loss(task),
                product_of=tuple(names.index(name) for name in task.product_of or ()),
                propensity=number(task.propensity),
                propensity_floor=_given(task.propensity_floor, 0.05),
                at_most=None if task.transfer_penalty == 0 else number(task.transfer_from),
                at_most_strength=_given(task.transfer_penalty, 0.6),
                negatives_kept=_given(task.negatives_kept, 1.0),
            )
            for task in tasks
        ]
    )


def feature_tables(
    kind: str, tables: Sequence[EmbeddingTable], tasks: Sequence[str]
) -> list[ple.FeatureTable]:
    """The tables a kind needs: one of each, one per task, or one with a slice per task and more.

    Tables of single_task are named ``table@task``.
    """
    if kind == "single_task":
        return [
            _feature_table(table, f"{table.name}@{task}", view=view)
            for view, task in enumerate(tasks)
            for table in tables
        ]
    slices = len(tasks) + 1 if kind == "stem" else 1
    return [_feature_table(table, table.name, slices=slices) for table in tables]


def cost_of(experiment: Experiment, transforms: FeatureTransforms) -> ple.Cost:
    """Parameters and operations of the experiment's model, without allocating it."""
    with torch.device("meta"):
        return ple.cost(build_ranker(experiment, transforms, "meta"))


def with_matched_width(
    experiment: Experiment,
    transforms: FeatureTransforms,
    budget: int,
    measure: Literal["parameters", "flops_per_row"],
) -> Experiment:
    """The same experiment with its experts widened or narrowed to a budget of the dense part.

    One factor scales every hidden width of every expert; towers, gates and counts stay. Of all
    factors the one that comes closest to the budget is taken.

    Args:
        experiment: the model to change.
        transforms: give the width of the input.
        budget: what ``measure`` of :func:`ple.cost` should be.
        measure: which figure is matched.

    Raises:
        ConfigError: even experts of width 1 exceed the budget by more than a tenth.
    """

    def spent(factor: float) -> int:
        figure: int = getattr(cost_of(_scaled(experiment, factor), transforms), measure)
        return figure

    low, high = 0.0, 1.0
    while spent(high) < budget:
        low, high = high, 2 * high
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) < budget else (low, middle)
    factor = min((low, high), key=lambda factor: abs(spent(factor) - budget))
    if spent(factor) > 1.1 * budget:
        raise ConfigError(
            f"model.kind {experiment.model.kind}: with experts of width 1 its {measure} are"
            f" {spent(factor):,}, the budget is {budget:,}: lower gate_hidden, tower_hidden or the"
            " number of experts"
        )
    return _scaled(experiment, factor)


def _scaled(experiment: Experiment, factor: float) -> Experiment:
    def widths(hidden: list[int]) -> list[int]:
        return [max(1, round(factor * width)) for width in hidden]

    tree = experiment.model.model_dump()
    for level in tree["levels"]:
        level["hidden"] = widths(level["hidden"])
        if level["shared_hidden"] is not None:
            level["shared_hidden"] = widths(level["shared_hidden"])
    return experiment.model_copy(update={"model": ModelConfig.model_validate(tree)})


def _feature_table(
    table: EmbeddingTable, name: str, view: int = 0, slices: int = 1
) -> ple.FeatureTable:
    return ple.FeatureTable(
        name,
        table.feature,
        table.rows,
        table.dim,
        table.pooling,
        table.weighted,
        view=view,
        slices=slices,
        map=None if table.map is None else ple.IdMap(**vars(table.map)),
    )


def _level_spec(level: LevelConfig, tasks: list[str], groups: list[str]) -> ple.LevelSpec:
    return ple.LevelSpec(
        shared_experts=level.shared_experts,
        task_experts=_counts(level.task_experts, tasks),
        hidden=tuple(level.hidden),
        shared_hidden=tuple(level.shared_hidden) if level.shared_hidden else None,
        gate_hidden=tuple(level.gate_hidden),
        gate_bias=level.gate_bias,
        group_experts=_counts(level.group_experts, groups),
    )


def _loss(task: TaskConfig) -> ple.losses.Loss:
    match task.loss:
        case "binary_cross_entropy":
            return ple.losses.BinaryCrossEntropy(
                _given(task.label_smoothing, 0.0),
                _given(task.positive_weight, 1.0),
                _given(task.focal_gamma, 0.0),
            )
        case "squared_error":
            return ple.losses.SquaredError()
        case "huber":
            return ple.losses.Huber(_given(task.huber_delta, 1.0))
        case "quantile":
            assert task.quantile is not None
            return ple.losses.Quantile(task.quantile)
        case "ziln":
            return ple.losses.ZeroInflatedLogNormal()
        case "ordinal":
            assert task.ordinal_range is not None
            return ple.losses.Ordinal(*task.ordinal_range)


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _counts(counts: int | dict[str, int], names: list[str]) -> tuple[int, ...]:
    return tuple(counts if isinstance(counts, int) else counts[name] for name in names)
