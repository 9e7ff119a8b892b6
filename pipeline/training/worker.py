"""What every worker does, start to end: data → model → loop → best weights → final metrics."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.config import Experiment
from pipeline.data.batch import Batch
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.selection import BestEvaluation, selection_metric
from pipeline.model import build_ranker
from pipeline.training.checkpoint import BestWeights
from pipeline.training.clock import PhaseClock
from pipeline.training.evaluate import evaluate, gate_utilisation
from pipeline.training.optimizers import Optimizers
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
        run_folder: shared by all workers; holds ``transforms`` and receives the checkpoint.
        reporter: told of progress and metrics; only the chief's is used.
    """
    return Trainer(experiment, context, run_folder, reporter).run()


class Trainer:
    """The parts of one worker's training, built in the order in which data flows through them."""

    def __init__(
        self, experiment: Experiment, context: WorkerContext, run_folder: Path, reporter: Reporter
    ) -> None:
        self.experiment, self.context, self.reporter = experiment, context, reporter
        train = experiment.train
        context.prepare(train.seed)
        self.clock = PhaseClock()
        self.tasks = list(experiment.tasks)
        self.transforms = FeatureTransforms.load(run_folder / "transforms")
        manifest = load_manifest(experiment.data.path)
        self.loaders = {
            split: self._loader(manifest, self.transforms, split)
            for split in ("train", "valid", "test")
            if manifest.splits.get(split)
        }
        self.steps_per_epoch = self.loaders["train"].steps
        self.total_steps = self.steps_per_epoch * train.epochs
        ranker = build_ranker(experiment, self.transforms, device="meta")
        self.model, self.placements = shard_ranker(
            ranker,
            sharding=experiment.sharding,
            optimizer=experiment.table_optimizer,
            batch_size=max(1, experiment.data.batch_size // context.world_size),
            device=context.device,
            local_world_size=context.local_world_size,
            seed=train.seed,
        )
        context.seed_dropout(train.seed)
        self.optimizers = Optimizers(
            self.model, experiment.dense_optimizer, experiment.schedule, self.total_steps
        )
        self.train_step = TrainStep(
            self.model, self.optimizers, self.tasks, context.device, self.clock
        )
        self.best_weights = BestWeights(run_folder / "checkpoint")
        stopping = train.early_stopping
        self.best_evaluation = BestEvaluation(
            selection_metric(stopping.metric, self.tasks), stopping.patience
        )
        self.history: list[dict[str, Any]] = []
        self.validation: dict[str, dict[str, Any]] = {}
        self.rows_trained = 0
        self.training_seconds = 0.0

    def run(self) -> TrainingResult:
        step = self._train()
        self.best_weights.restore(self.model)
        splits: dict[str, dict[str, dict[str, Any]]] = {}
        with self.clock.phase("evaluation"):
            for split in ("valid", "test"):
                if split in self.loaders:
                    self._announce(f"scoring {split}", step)
                    splits[split] = self._evaluate(split)
            gates = gate_utilisation(self.model, self.loaders["valid"], self.context.device)
        rows_trained, counters = self._totals()
        trained = max(self.training_seconds, 1e-9)
        return TrainingResult(
            splits=splits,
            best_step=self.best_evaluation.step or 0,
            best_value=self.best_evaluation.value or 0.0,
            checkpoint=str(self.best_weights.path),
            steps=step,
            rows_trained=rows_trained,
            examples_per_second=rows_trained / trained,
            data_wait_fraction=self.clock.seconds.get("data wait", 0.0) / trained,
            seconds=dict(self.clock.seconds),
            gates=gates,
            placements=[asdict(placement) for placement in self.placements],
            counters=counters,
            history=self.history,
        )

    def _train(self) -> int:
        """Runs the epochs; returns the number of steps done."""
        train = self.experiment.train
        step = 0
        for epoch in range(train.epochs):
            mark = _Mark(step, self.rows_trained, time.perf_counter())
            for batch in self.batches(epoch):
                self.train_step(batch, step)
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
        for batch in self.clock.waiting("data wait", self.loaders["train"].epoch(epoch)):
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
        clipped = self.optimizers.clipped_fraction()
        if clipped is not None:
            values["train/clipped_fraction"] = clipped
        for name, loss in losses.items():
            self._record(step, epoch, "train", name, "loss", loss)
        if self.context.is_chief:
            self.reporter.metrics(step, epoch + 1, values)
            self.reporter.progress(self._snapshot("training", step, rate, losses))
        return _Mark(step, self.rows_trained, now)

    def _validate(self, epoch: int, step: int) -> bool:
        """Scores the validation split, keeps the weights if best; true when it is time to stop."""
        self._announce("evaluating", step)
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
        return evaluate(self.model, self.loaders[split], self.tasks, self.context.device)

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

    def _totals(self) -> tuple[int, dict[str, int]]:
        """Rows trained and reader counters, summed over workers."""
        names = sorted({name for loader in self.loaders.values() for name in loader.counters})
        gathered: list[Any] = [None] * self.context.world_size
        own = {n: sum(ld.counters.get(n, 0) for ld in self.loaders.values()) for n in names}
        dist.all_gather_object(gathered, (self.rows_trained, own))
        counters: dict[str, int] = {}
        for _, counts in gathered:
            for name, count in counts.items():
                counters[name] = counters.get(name, 0) + count
        return sum(rows for rows, _ in gathered), counters

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
            pin_memory=self.context.device.type == "cuda",
        )


class _Mark:
    """A point from which speed is measured."""

    def __init__(self, step: int, rows: int, now: float) -> None:
        self.step, self.rows, self.time = step, rows, now
