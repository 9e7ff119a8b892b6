"""The whole experiment: data, features, tasks, model, optimizers, training, Ray, MLflow."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.artifact import ArtifactConfig
from pipeline.config.backtest import BacktestConfig
from pipeline.config.balance import BalanceConfig, check_balance
from pipeline.config.base import Section
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.compare import CompareConfig
from pipeline.config.data import DataConfig, Location
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.failures import FailuresConfig
from pipeline.config.features import FeaturesConfig
from pipeline.config.init import InitConfig
from pipeline.config.model import ModelConfig
from pipeline.config.optimizers import DenseOptimizerConfig, ScheduleConfig, TableOptimizerConfig
from pipeline.config.promotion import PromotionConfig
from pipeline.config.scoring import ScoringConfig
from pipeline.config.serving import ServingConfig
from pipeline.config.sharding import ShardingConfig, check_sharding, device_fault
from pipeline.config.task_checks import check_tasks
from pipeline.config.tasks import TaskConfig
from pipeline.config.tune import TuneConfig


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
    min_workers: PositiveInt | None = Field(
        default=None,
        description="Fewest workers the run goes on with while the cluster has no room for "
        "`workers` of them; absent = it waits for all.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto = cuda where every worker can have a GPU, else cpu."
    )
    threads: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Intra-op threads of a worker; auto = its share of the cores."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Of the dense part's matrix products in training; bf16 runs where the device "
        "computes in it (GPUs; CPUs with AVX512-BF16 or AMX) and is refused elsewhere. Weights, "
        "tables, losses and evaluation are float32 either way.",
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
    profile_steps: PositiveInt | None = Field(
        default=None,
        description="Steps the torch profiler traces, after a few to warm up; absent = none.",
    )

    @model_validator(mode="after")
    def _fewer_workers_than_workers(self) -> Self:
        if self.min_workers is not None and (
            self.workers == "auto" or self.min_workers >= self.workers
        ):
            raise ValueError("`min_workers` must be below `workers`, which must be a number")
        return self


class RayConfig(Section):
    """The Ray cluster the workers run on."""

    address: str | None = Field(
        default=None, description="Cluster to join (auto, or HOST:PORT); absent = start one here."
    )
    cpus_per_worker: PositiveInt = Field(default=1, description="CPUs reserved for each worker.")
    object_store_mb: Annotated[int, Field(ge=75)] | None = Field(
        default=None, description="Object store of a cluster started here; absent = 256."
    )
    placement: Literal["pack", "spread"] = Field(
        default="pack",
        description="pack = workers on as few nodes as have room; spread = over as many as can be.",
    )
    accelerator: str | None = Field(
        default=None,
        description="Kind of GPU, as Ray names it (H100); needed where nodes have different ones.",
    )
    network_interface: str | None = Field(
        default=None,
        description="Network of the workers' collectives on every node (eth0); absent = gloo's and "
        "NCCL's own choice.",
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
    delivery_timeout_seconds: float = Field(
        default=60,
        ge=0,
        description="How long registration and the end of a run wait for an MLflow that is away.",
    )


class StorageConfig(Section):
    """The place every worker can write: run folders with their checkpoints, local MLflow store."""

    path: Location = Field(
        default="runs",
        description="A folder that all nodes share, or a URI of an object store "
        "(s3://bucket/runs).",
    )
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
    balance: BalanceConfig = Field(default_factory=BalanceConfig)
    table_optimizer: TableOptimizerConfig = Field(default_factory=TableOptimizerConfig)
    dense_optimizer: DenseOptimizerConfig = Field(default_factory=DenseOptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    table_schedule: ScheduleConfig | None = Field(
        default=None, description="The tables' schedule; absent = `schedule`."
    )
    sharding: ShardingConfig = Field(default_factory=ShardingConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    failures: FailuresConfig = Field(default_factory=FailuresConfig)
    init: InitConfig = Field(default_factory=InitConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    artifact: ArtifactConfig = Field(default_factory=ArtifactConfig)
    compare: CompareConfig = Field(default_factory=CompareConfig)
    tune: TuneConfig = Field(default_factory=TuneConfig)
    serving: ServingConfig = Field(default_factory=ServingConfig)
    scoring: ScoringConfig = Field(default_factory=ScoringConfig)
    promotion: PromotionConfig = Field(default_factory=PromotionConfig)
    backtest: BacktestConfig = Field(default_factory=BacktestConfig)

    @model_validator(mode="after")
    def _tasks_and_features(self) -> Self:
        check_tasks(self.tasks)
        self.model.check_tasks([task.name for task in self.tasks if task.has_tower])
        check_balance(self.balance, self.tasks)
        check_sharding(self.sharding, self.table_optimizer)
        if self.train.device == "cpu":
            fault = device_fault(self.sharding, self.table_optimizer, "cpu")
            if fault is not None:
                raise ValueError(fault)
        answers = {c for t in self.tasks for c in (*t.label_columns, *t.space_columns)}
        leaked = sorted(answers & set(self.features.names))
        if leaked:
            raise ValueError(f"labels used as features: {', '.join(leaked)}")
        return self
