"""The whole experiment: data, features, tasks, model, optimizers, training, Ray, MLflow."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.config.base import Section
from pipeline.config.data import DataConfig, Folder
from pipeline.config.features import FeaturesConfig
from pipeline.config.model import ModelConfig
from pipeline.config.tasks import TaskConfig


class TableOptimizerConfig(Section):
    """The optimizer fused into the backward pass of the embedding tables."""

    kind: Literal["rowwise_adagrad", "adagrad", "sgd"] = Field(
        default="rowwise_adagrad", description="rowwise_adagrad keeps one moment per row."
    )
    learning_rate: PositiveFloat = Field(default=0.02, description="Peak learning rate.")
    eps: PositiveFloat | None = Field(
        default=None, description="Adagrad's denominator offset; absent = 1e-8."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.kind == "sgd" and self.eps is not None:
            raise ValueError("`eps` has no effect with kind: sgd")
        return self


class DenseOptimizerConfig(Section):
    """The optimizer of experts, gates and towers."""

    kind: Literal["adam", "adamw", "adagrad", "sgd"] = Field(
        default="adam", description="torch.optim's algorithm of that name."
    )
    learning_rate: PositiveFloat = Field(default=1e-3, description="Peak learning rate.")
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 penalty; decoupled from the gradient with adamw."
    )
    clip_norm: PositiveFloat | None = Field(
        default=None, description="Clip the global norm of the dense gradient; absent = never."
    )


class ScheduleConfig(Section):
    """Learning-rate multiplier over steps, the same for tables and dense part."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Course from the peak after warm-up to the last step."
    )
    warmup_steps: NonNegativeInt = Field(
        default=0, description="Steps of linear growth from 0 to the peak."
    )
    final_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="linear, cosine: rate at the end over the peak; absent = 0.",
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.kind == "constant" and self.final_fraction is not None:
            raise ValueError("`final_fraction` has no effect with kind: constant")
        return self


class ShardingConfig(Section):
    """What TorchRec's planner may choose from."""

    types: tuple[Literal["table_wise", "row_wise"], ...] = Field(
        default=("table_wise", "row_wise"),
        min_length=1,
        description="Sharding types the planner may pick for a table.",
    )


class EarlyStoppingConfig(Section):
    """When to stop, judged on the validation split."""

    metric: str = Field(
        default="mean_auc",
        description="mean_auc, joint_loss, or TASK/METRIC such as click/auc or like/logloss.",
    )
    patience: PositiveInt = Field(
        default=3, description="Evaluations without a better value after which training stops."
    )


class TrainConfig(Section):
    """The loop: who works, how long, and on what."""

    workers: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Worker processes; auto = one per GPU, or without GPUs one per "
        "ray.cpus_per_worker CPUs, at most data.streams.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto = cuda where every worker can have a GPU, else cpu."
    )
    threads: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Intra-op threads of a worker; auto = its share of the cores."
    )
    seed: NonNegativeInt = Field(default=0, description="Seeds weights, dropout and row order.")
    epochs: PositiveInt = Field(default=1, description="Passes over the train split.")
    evaluate_every: PositiveInt | None = Field(
        default=None, description="Steps between evaluations; absent = once an epoch."
    )
    log_every: PositiveInt = Field(default=50, description="Steps between logged training losses.")
    early_stopping: EarlyStoppingConfig = Field(
        default_factory=EarlyStoppingConfig, description="Selection of the best weights."
    )


class RayConfig(Section):
    """The Ray cluster the workers run on."""

    address: str | None = Field(
        default=None, description="Cluster to join (auto, or HOST:PORT); absent = start one here."
    )
    cpus_per_worker: PositiveInt = Field(default=1, description="CPUs reserved for each worker.")
    object_store_mb: Annotated[int, Field(ge=75)] | None = Field(
        default=None, description="Object store of a cluster started here; absent = 256."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.address is not None and self.object_store_mb is not None:
            raise ValueError("`object_store_mb` has no effect when joining a cluster")
        return self


class MlflowConfig(Section):
    """Where runs, metrics and models are kept."""

    tracking_uri: str | None = Field(
        default=None, description="MLflow server or store; absent = SQLite under storage.path."
    )
    experiment: str | None = Field(
        default=None, description="MLflow experiment; absent = the experiment's name."
    )
    model_name: str | None = Field(
        default=None, description="Registered model; absent = the experiment's name."
    )
    alias: str = Field(default="candidate", description="Alias moved to the new version.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags set on the run.")


class StorageConfig(Section):
    """The folder every worker can write: checkpoints, local MLflow store."""

    path: Folder = Field(default="runs", description="Shared by all nodes when there are several.")
    keep_checkpoint: bool = Field(
        default=False, description="Keep the sharded checkpoint of the best weights after the run."
    )


class Experiment(Section):
    """One training run, whole."""

    name: str = Field(description="Names the MLflow experiment and the registered model.")
    data: DataConfig
    features: FeaturesConfig
    tasks: list[TaskConfig] = Field(min_length=1, description="What is predicted, in score order.")
    model: ModelConfig
    table_optimizer: TableOptimizerConfig = Field(default_factory=TableOptimizerConfig)
    dense_optimizer: DenseOptimizerConfig = Field(default_factory=DenseOptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    sharding: ShardingConfig = Field(default_factory=ShardingConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)

    @model_validator(mode="after")
    def _tasks_and_features(self) -> Self:
        names = [t.name for t in self.tasks]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"tasks listed twice: {', '.join(repeated)}")
        for number, level in enumerate(self.model.levels, start=1):
            if isinstance(level.task_experts, dict) and set(level.task_experts) != set(names):
                raise ValueError(
                    f"model.levels[{number - 1}].task_experts names {sorted(level.task_experts)}, "
                    f"the tasks are {sorted(names)}: give one count per task"
                )
        answers = {c for t in self.tasks for c in (t.label_column, t.space) if c}
        leaked = sorted(answers & set(self.features.names))
        if leaked:
            raise ValueError(f"labels used as features: {', '.join(leaked)}")
        return self
