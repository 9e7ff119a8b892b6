"""The parts of one worker's training, built in the order in which data flows through them."""

from collections.abc import Sequence

from pipeline.config import Experiment
from pipeline.config.locations import inside
from pipeline.data.loader import BatchLoader
from pipeline.data.slices import load_slices
from pipeline.data.sources.dataset import saved_manifest
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.metrics import MetricOptions
from pipeline.evaluation.selection import BestEvaluation, selection_metric
from pipeline.model import build_heads, build_ranker
from pipeline.training.ahead import Ahead
from pipeline.training.clock import PhaseClock
from pipeline.training.data_account import DataAccount
from pipeline.training.evaluate import Evaluator
from pipeline.training.guard import LossGuard
from pipeline.training.joint_loss import JointLoss
from pipeline.training.optimizers import Optimizers
from pipeline.training.pooling import load_pooling_factors
from pipeline.training.precision import set_precision
from pipeline.training.profiling import StepTrace
from pipeline.training.sharding import shard_ranker
from pipeline.training.step import TrainStep
from pipeline.training.worker_context import WorkerContext


class TrainingParts:
    """What a worker reads with, trains and measures.

    Args:
        experiment: the run.
        context: this worker.
        run_folder: holds ``transforms`` and ``dataset``.
    """

    def __init__(self, experiment: Experiment, context: WorkerContext, run_folder: str) -> None:
        self.experiment, self.context = experiment, context
        train = experiment.train
        context.prepare(train.seed)
        self.clock = PhaseClock(context.device)
        self.tasks = list(experiment.tasks)
        self.transforms = FeatureTransforms.load(inside(run_folder, "transforms"))
        dataset = inside(run_folder, "dataset")
        self.manifest = saved_manifest(experiment, dataset)
        self.loaders = {
            split: self._loader(split)
            for split in ("train", "valid", "test")
            if self.manifest.splits.get(split)
        }
        self.data_account = DataAccount(self.loaders, context.device)
        # Read while the model is built: neither the first step nor the first evaluation waits.
        self.loaders["train"].prime(0)
        self.loaders["valid"].prime(0)
        self.steps_per_epoch = self.loaders["train"].steps
        self.total_steps = self.steps_per_epoch * train.epochs
        ranker = build_ranker(experiment, self.transforms, device="meta")
        set_precision(ranker, train.precision, context.device)
        self.model, self.plan = shard_ranker(
            ranker,
            sharding=experiment.sharding,
            optimizer=experiment.table_optimizer,
            batch_size=max(1, experiment.data.batch_size // context.world_size),
            device=context.device,
            local_world_size=context.local_world_size,
            seed=train.seed,
            dense_optimizer=experiment.dense_optimizer,
            pooling_factors=load_pooling_factors(dataset),
        )
        context.seed_dropout(train.seed)
        self.optimizers = Optimizers(
            self.model,
            experiment.dense_optimizer,
            experiment.schedule,
            self.total_steps,
            experiment.table_optimizer,
            experiment.table_schedule,
        )
        names = [task.name for task in self.tasks]
        self.guard = LossGuard(names, experiment.failures.loss_limit, context.device)
        self.joint_loss = JointLoss(
            self.tasks,
            build_heads(self.tasks),
            experiment.balance,
            context.device,
            self.clock,
            seed=train.seed,
            steps_per_epoch=self.steps_per_epoch,
            measure_every=train.log_every,
            guard=self.guard,
        )
        self.ahead = Ahead(self.model.module.embeddings, context.device, self.clock)
        self.train_step = TrainStep(
            self.model, self.optimizers, self.joint_loss, self.clock, self.ahead
        )
        slices = load_slices(dataset) if experiment.evaluation.slices else ()
        options = MetricOptions.of(experiment.evaluation, slices)
        self.evaluator = Evaluator(self.model, self.tasks, options, context.device)
        traced = (train.profile_steps or 0) if context.is_chief else 0
        profile = inside(run_folder, "profile")
        self.trace = StepTrace(profile, traced, context.device, self.total_steps)
        stopping = train.early_stopping
        self.best_evaluation = BestEvaluation(
            selection_metric(stopping.metric, self.tasks, options.group_key is not None),
            stopping.patience,
        )

    def close(self) -> None:
        """Ends what is being read ahead."""
        for loader in self.loaders.values():
            loader.close()

    def _loader(self, split: str) -> BatchLoader:
        data, training = self.experiment.data, split == "train"
        keys: Sequence[str] = () if training else self.experiment.evaluation.key_columns
        return BatchLoader(
            folder=data.path,
            manifest=self.manifest,
            split=split,
            transforms=self.transforms,
            tasks=self.tasks,
            sample_weight=data.sample_weight,
            batch_size=data.batch_size if training else data.evaluation_batch_size,
            streams=data.streams,
            shuffle_rows=data.shuffle_rows if training else 0,
            seed=self.experiment.train.seed,
            rank=self.context.rank,
            world_size=self.context.world_size,
            prefetch_batches=data.prefetch_batches,
            faults=data.faults,
            keys=keys,
            pin_memory=self.context.device.type == "cuda",
        )
