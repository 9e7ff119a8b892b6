"""The experiment's model: configuration and fitted transforms → :class:`ple.Ranker`."""

import torch

import ple
from pipeline.config import Experiment
from pipeline.config.model import LevelConfig
from pipeline.data.transforms import FeatureTransforms


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
    tables = [
        ple.FeatureTable(t.name, t.feature, t.rows, t.dim, t.pooling, t.weighted)
        for t in transforms.tables
    ]
    model = experiment.model
    task_names = [task.name for task in experiment.tasks]
    return ple.Ranker(
        ple.FeatureEmbeddings(tables, device=torch.device(device)) if tables else None,
        dense_width=len(transforms.dense_names),
        levels=[_level_spec(level, task_names) for level in model.levels],
        tower_hidden=[
            model.tower_hidden if task.tower_hidden is None else task.tower_hidden
            for task in experiment.tasks
        ],
        activation=model.activation,
        normalization=model.normalization,
        input_dropout=model.input_dropout,
        expert_dropout=model.expert_dropout,
        tower_dropout=model.tower_dropout,
    )


def _level_spec(level: LevelConfig, task_names: list[str]) -> ple.LevelSpec:
    counts = level.task_experts
    return ple.LevelSpec(
        shared_experts=level.shared_experts,
        task_experts=tuple(
            counts if isinstance(counts, int) else counts[name] for name in task_names
        ),
        hidden=tuple(level.hidden),
        shared_hidden=tuple(level.shared_hidden) if level.shared_hidden else None,
        gate_hidden=tuple(level.gate_hidden),
        gate_bias=level.gate_bias,
    )
