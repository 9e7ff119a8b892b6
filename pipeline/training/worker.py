"""What every worker does, start to end: data → model → loop → best weights → final metrics."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Experiment
from pipeline.data.batch import Batch
from pipeline.data.loader import BatchLoader
from pipeline.data.losses import loss_table, rows_by_kind
from pipeline.data.manifest import Manifest
from pipeline.data.slices import load_slices
from pipeline.data.sources.dataset import saved_manifest
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.metrics import MetricOptions
from pipeline.evaluation.selection import BestEvaluation, selection_metric
from pipeline.model import build_heads, build_ranker
from pipeline.training.checkpoint import BestWeights
from pipeline.training.clock import PhaseClock, time_shares
from pipeline.training.data_account import DataAccount
from pipeline.training.evaluate import Evaluator
from pipeline.training.joint_loss import JointLoss
from pipeline.training.optimizers import Optimizers
from pipeline.training.pooling import load_pooling_factors
from pipeline.training.profiling import StepTrace
from pipeline.training.report import Progress, Reporter, TrainingResult
from pipeline.training.sharding import shard_ranker
from pipeline.training.step import TrainStep
from pipeline.training.worker_context import WorkerContext


def train_worker(
    experiment: Experiment, context: WorkerContext, run_folder: Path, reporter: Reporter
) -> TrainingResult:
    """Trains, keeps the best weights by validation, and scores them on every split.

    Args:
        experiment: the run.
        context: this worker; its process group stands already.
        run_folder: shared by all workers; holds ``transforms`` and ``dataset`` (the manifest, and
            with ``evaluation.slices`` their values) and receives the checkpoint.
        reporter: told of progress and metrics; only the chief's is used.
    """
    trainer = Trainer(experiment, context, run_folder, reporter)
    try:
        return trainer.run()
    finally:
        trainer.close()


class Trainer:
    """The parts of one worker's training, built in the order in which data flows through them."""

    def __init__(
        self, experiment: Experiment, context: WorkerContext, run_folder: Path, reporter: Reporter
    ) -> None:
        self.experiment, self.context, self.reporter = experiment, context, reporter
        train = experiment.train
        context.prepare(train.seed)
        self.clock = PhaseClock(context.device)
        self.tasks = list(experiment.tasks)
        self.transforms = FeatureTransforms.load(run_folder / "transforms")
        manifest = saved_manifest(experiment, run_folder / "dataset")
        self.loaders = {
            split: self._loader(manifest, self.transforms, split)
            for split in ("train", "valid", "test")
            if manifest.splits.get(split)
        }
        self.data_account = DataAccount(self.loaders, context.device)
        # Read while the model is built: neither the first step nor the first evaluation waits.
        self.loaders["train"].prime(0)
        self.loaders["valid"].prime(0)
        self.steps_per_epoch = self.loaders["train"].steps
        self.total_steps = self.steps_per_epoch * train.epochs
        ranker = build_ranker(experiment, self.transforms, device="meta")
        self.model, self.plan = shard_ranker(
            ranker,
            sharding=experiment.sharding,
            optimizer=experiment.table_optimizer,
            batch_size=max(1, experiment.data.batch_size // context.world_size),
            device=context.device,
            local_world_size=context.local_world_size,
            seed=train.seed,
            dense_optimizer=experiment.dense_optimizer,
            pooling_factors=load_pooling_factors(run_folder / "dataset"),
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
        joint_loss = JointLoss(
            self.tasks,
            build_heads(self.tasks),
            experiment.balance,
            context.device,
            self.clock,
            seed=train.seed,
            steps_per_epoch=self.steps_per_epoch,
            measure_every=train.log_every,
        )
        self.train_step = TrainStep(self.model, self.optimizers, joint_loss, self.clock)
        slices = load_slices(run_folder / "dataset") if experiment.evaluation.slices else ()
        options = MetricOptions.of(experiment.evaluation, slices)
        self.evaluator = Evaluator(self.model, self.tasks, options, context.device)
        self.best_weights = BestWeights(run_folder / "checkpoint", self.plan.to_tree())
        traced = (train.profile_steps or 0) if context.is_chief else 0
        profile = run_folder / "profile"
        self.trace = StepTrace(profile, traced, context.device, self.total_steps)
        stopping = train.early_stopping
        self.best_evaluation = BestEvaluation(
            selection_metric(stopping.metric, self.tasks, options.group_key is not None),
            stopping.patience,
        )
        self.history: list[dict[str, Any]] = []
        self.validation: dict[str, dict[str, Any]] = {}
        self.rows_trained = 0
        self.training_seconds = 0.0

    def run(self) -> TrainingResult:
        began = time.perf_counter()
        with self.trace:
            step = self._train()
        self.best_weights.restore(self.model)
        splits: dict[str, dict[str, dict[str, Any]]] = {}
        with self.clock.phase("evaluation"):
            self._announce("scoring valid", step)
            splits["valid"], diagnostics = self.evaluator.with_diagnostics(self.loaders["valid"])
            self.data_account.check("valid")
            if "test" in self.loaders:
                self._announce("scoring test", step)
                splits["test"] = self._evaluate("test")
        rows_trained, counters, losses = self.data_account.totals(self.rows_trained)
        trained = max(self.training_seconds, 1e-9)
        seconds = dict(self.clock.seconds)
        return TrainingResult(
            splits=splits,
            best_step=self.best_evaluation.step or 0,
            best_value=self.best_evaluation.value or 0.0,
            checkpoint=str(self.best_weights.path),
            steps=step,
            rows_trained=rows_trained,
            examples_per_second=rows_trained / trained,
            data_wait_fraction=seconds.get("data wait", 0.0) / trained,
            seconds=seconds,
            time_shares=time_shares(seconds, time.perf_counter() - began),
            gates=diagnostics.mean_weights(),
            diagnostics=diagnostics.to_tree(),
            plan=self.plan.to_tree(),
            counters=counters,
            losses=loss_table(losses),
            lost_rows=rows_by_kind(losses),
            history=self.history,
        )

    def close(self) -> None:
        """Ends what is being read ahead."""
        for loader in self.loaders.values():
            loader.close()

    def _train(self) -> int:
        """Runs the epochs; returns the number of steps done."""
        train = self.experiment.train
        step = 0
        for epoch in range(train.epochs):
            mark = _Mark(step, self.rows_trained, time.perf_counter())
            for batch in self.batches(epoch):
                self.train_step(batch, step)
                self.trace.step()
                self.rows_trained += batch.rows
                step += 1
                at_end = step == (epoch + 1) * self.steps_per_epoch
                if at_end or step % train.log_every == 0:
                    mark = self._log(mark, epoch, step)
                if at_end or (train.evaluate_every and step % train.evaluate_every == 0):
                    self.training_seconds += time.perf_counter() - mark.time
                    stop = self._validate(epoch, step)
                    mark = _Mark(step, self.rows_trained, time.perf_counter())
                    if stop:
                        return step
        return step

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The training batches of an epoch on the device, the wait for each on the clock."""
        loader = self.loaders["train"]
        batches = loader.epoch(epoch)
        if epoch + 1 < self.experiment.train.epochs:
            loader.prime(epoch + 1)
        for batch in self.clock.waiting("data wait", batches):
            yield batch.to(self.context.device, non_blocking=True)

    def _log(self, mark: "_Mark", epoch: int, step: int) -> "_Mark":
        losses = self.train_step.mean_losses(step)
        now = time.perf_counter()
        self.training_seconds += now - mark.time
        # Workers share every global batch evenly enough to judge the speed by the chief's rows.
        rows = (step - mark.step) * self.experiment.data.batch_size
        rate = rows / max(now - mark.time, 1e-9)
        weights = {task.name: task.weight for task in self.tasks}
        values = {f"train/loss/{name}": loss for name, loss in losses.items()}
        values["train/loss"] = sum(weights[name] * loss for name, loss in losses.items())
        values["train/examples_per_second"] = rate
        values["train/learning_rate"] = self.optimizers.learning_rate
        if self.experiment.table_schedule is not None:
            peak = self.experiment.table_optimizer.learning_rate
            values["train/table_learning_rate"] = peak * self.optimizers.table_multiplier
        clipped = self.optimizers.clipped_fraction()
        if clipped is not None:
            values["train/clipped_fraction"] = clipped
        for name, loss in losses.items():
            self._record(step, epoch, "train", name, "loss", loss)
        if self.experiment.data.faults.skips:
            values["train/lost_rows"] = self.data_account.check("train")
        balance = self.train_step.balance_figures()
        values |= balance.metrics()
        for task, metric, value in balance.records():
            self._record(step, epoch, "balance", task, metric, value)
        if self.context.is_chief:
            self.reporter.metrics(step, epoch + 1, values)
            self.reporter.progress(self._snapshot("training", step, rate, losses))
        return _Mark(step, self.rows_trained, now)

    def _validate(self, epoch: int, step: int) -> bool:
        """Scores the validation split, keeps the weights if best; true when it is time to stop."""
        self._announce("evaluating", step)
        with self.optimizers.averaged():
            return self._validate_averaged(epoch, step)

    def _validate_averaged(self, epoch: int, step: int) -> bool:
        with self.clock.phase("evaluation"):
            self.validation = self._evaluate("valid")
        values = {}
        for task, metrics in self.validation.items():
            for metric, value in metrics.items():
                if isinstance(value, int | float):
                    values[f"valid/{task}/{metric}"] = value
                    self._record(step, epoch, "valid", task, metric, value)
        if self.context.is_chief:
            self.reporter.metrics(step, epoch + 1, values)
        if self.best_evaluation.observe(step, self.validation):
            with self.clock.phase("checkpoint"):
                self.best_weights.save(self.model, step)
        return self.best_evaluation.exhausted

    def _evaluate(self, split: str) -> dict[str, dict[str, Any]]:
        computed = self.evaluator(self.loaders[split])
        self.data_account.check(split)
        if split == "valid":
            self.loaders[split].prime(0)  # for the next time
        return computed

    def _announce(self, phase: str, step: int) -> None:
        if self.context.is_chief:
            self.reporter.progress(self._snapshot(phase, step, 0.0, {}))

    def _snapshot(self, phase: str, step: int, rate: float, losses: dict[str, float]) -> Progress:
        epochs = self.experiment.train.epochs
        return Progress(
            phase=phase,
            epoch=min(epochs, max(0, step - 1) // self.steps_per_epoch + 1),
            epochs=epochs,
            step=step,
            total_steps=self.total_steps,
            batch_size=self.experiment.data.batch_size,
            examples_per_second=rate,
            losses=losses,
            validation=self.validation,
        )

    def _record(
        self, step: int, epoch: int, split: str, task: str, metric: str, value: float
    ) -> None:
        self.history.append(
            {"step": step, "epoch": epoch + 1, "split": split, "task": task, "metric": metric}
            | {"value": value}
        )

    def _loader(self, manifest: Manifest, transforms: FeatureTransforms, split: str) -> BatchLoader:
        data = self.experiment.data
        training = split == "train"
        return BatchLoader(
            folder=data.path,
            manifest=manifest,
            split=split,
            transforms=transforms,
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
            keys=() if training else self.experiment.evaluation.key_columns,
            pin_memory=self.context.device.type == "cuda",
        )


class _Mark:
    """A point from which speed is measured."""

    def __init__(self, step: int, rows: int, now: float) -> None:
        self.step, self.rows, self.time = step, rows, now
