"""What a training measures of itself, writes into its journal and tells the reporter."""

import time
from collections.abc import Callable
from typing import Any

from pipeline.data.losses import loss_table, rows_by_kind
from pipeline.evaluation.scored_rows import RowKeeper
from pipeline.training.clock import time_shares
from pipeline.training.evaluate import EvaluationAbandonedError
from pipeline.training.journal import Journal
from pipeline.training.parts import TrainingParts
from pipeline.training.report import Progress, Reporter, TrainingResult


class Measuring:
    """Losses, evaluations and the final figures. Every rank must make the same calls.

    Args:
        parts: what is measured.
        journal: where it is entered.
        reporter: told of it by the chief.
        interrupt: called on every worker now and then during an evaluation; may raise
            EvaluationAbandonedError on all of them.
    """

    def __init__(
        self,
        parts: TrainingParts,
        journal: Journal,
        reporter: Reporter,
        interrupt: Callable[[], None],
    ) -> None:
        self._parts, self._journal = parts, journal
        self._reporter, self._interrupt = reporter, interrupt
        self._is_chief = parts.context.is_chief

    def log(self, rate: float) -> None:
        """Logs what was summed up since the last log.

        Args:
            rate: examples per second; workers share every global batch evenly enough to judge by
                the chief's clock. 0 = another process did these steps.
        """
        parts, journal = self._parts, self._journal
        experiment, step = parts.experiment, journal.step
        losses = parts.train_step.mean_losses(step)
        weights = {task.name: task.weight for task in parts.tasks}
        values = {f"train/loss/{name}": loss for name, loss in losses.items()}
        values["train/loss"] = sum(weights[name] * loss for name, loss in losses.items())
        if rate:
            values["train/examples_per_second"] = rate
        values["train/learning_rate"] = parts.optimizers.learning_rate
        if experiment.table_schedule is not None:
            peak = experiment.table_optimizer.learning_rate
            values["train/table_learning_rate"] = peak * parts.optimizers.table_multiplier
        clipped = parts.optimizers.clipped_fraction()
        if clipped is not None:
            values["train/clipped_fraction"] = clipped
        if experiment.failures.skip_limit:
            values["train/skipped_batches"] = float(journal.skipped)
        for name, loss in losses.items():
            self._record("train", name, "loss", loss)
        if experiment.data.faults.skips:
            values["train/lost_rows"] = parts.data_account.check("train")
        balance = parts.train_step.balance_figures()
        values |= balance.metrics()
        for task, metric, value in balance.records():
            self._record("balance", task, metric, value)
        self._post(values)
        journal.logged = step
        if self._is_chief:
            self._reporter.progress(self._snapshot("training", rate, losses))

    def validate(self) -> bool:
        """Scores the validation split with the weights as they are exported; whether they are the
        best so far.

        Raises:
            EvaluationAbandonedError: as if it had never begun.
        """
        parts, journal = self._parts, self._journal
        loader = parts.loaders["valid"]
        books = loader.books()
        self._announce("evaluating")
        try:
            with parts.optimizers.averaged(), parts.clock.phase("evaluation"):
                validation = parts.evaluator(loader, self._interrupt)
        except EvaluationAbandonedError:
            loader.load_books([books])
            raise
        parts.data_account.check("valid")
        loader.prime(0)  # for the next time
        journal.validation = validation
        values = {}
        for task, metrics in validation.items():
            for metric, value in metrics.items():
                if isinstance(value, int | float):
                    values[f"valid/{task}/{metric}"] = value
                    self._record("valid", task, metric, value)
        self._post(values)
        journal.evaluated = journal.step
        return parts.best_evaluation.observe(journal.step, validation)

    def result(self, checkpoint: str, began: float) -> TrainingResult:
        """Scores the weights in force on every split.

        Args:
            checkpoint: where they are.
            began: when the first batch was asked for, on ``time.perf_counter``'s clock.
        """
        parts, journal = self._parts, self._journal
        splits: dict[str, dict[str, dict[str, Any]]] = {}
        tested = "test" in parts.loaders
        kept = parts.experiment.artifact.check_rows
        keeper = RowKeeper("test" if tested else "valid", parts.tasks, kept)
        with parts.clock.phase("evaluation"):
            self._announce("scoring valid")
            splits["valid"], diagnostics = parts.evaluator.with_diagnostics(
                parts.loaders["valid"], self._interrupt, None if tested else keeper
            )
            parts.data_account.check("valid")
            if tested:
                self._announce("scoring test")
                splits["test"] = parts.evaluator(parts.loaders["test"], self._interrupt, keeper)
                parts.data_account.check("test")
        rows_trained, counters, losses = parts.data_account.totals(journal.rows_trained)
        if journal.skipped:
            counters["skipped_batches"] = journal.skipped
        trained = max(journal.training_seconds, 1e-9)
        seconds = dict(parts.clock.seconds)
        best = parts.best_evaluation
        return TrainingResult(
            splits=splits,
            best_step=journal.step if best.step is None else best.step,
            best_value=best.value or 0.0,
            checkpoint=checkpoint,
            steps=journal.step,
            rows_trained=rows_trained,
            examples_per_second=rows_trained / trained,
            data_wait_fraction=seconds.get("data wait", 0.0) / trained,
            seconds=seconds,
            time_shares=time_shares(seconds, time.perf_counter() - began),
            gates=diagnostics.mean_weights(),
            diagnostics=diagnostics.to_tree(),
            plan=parts.plan.to_tree(),
            counters=counters,
            losses=loss_table(losses),
            lost_rows=rows_by_kind(losses),
            history=journal.history,
            sample=keeper.kept(),
        )

    @property
    def _epoch(self) -> int:
        """The epoch of the step done last, from 1."""
        return max(0, self._journal.step - 1) // self._parts.steps_per_epoch + 1

    def _record(self, split: str, task: str, metric: str, value: float) -> None:
        where = {"step": self._journal.step, "epoch": self._epoch, "split": split}
        what = {"task": task, "metric": metric, "value": value}
        self._journal.history.append(where | what)

    def _post(self, values: dict[str, float]) -> None:
        if self._is_chief:
            step, epoch = self._journal.step, self._epoch
            self._journal.postings.append({"step": step, "epoch": epoch, "values": values})
            self._reporter.metrics(step, epoch, values)

    def _announce(self, phase: str) -> None:
        if self._is_chief:
            self._reporter.progress(self._snapshot(phase, 0.0, {}))

    def _snapshot(self, phase: str, rate: float, losses: dict[str, float]) -> Progress:
        return Progress(
            phase=phase,
            epoch=self._epoch,
            epochs=self._parts.experiment.train.epochs,
            step=self._journal.step,
            total_steps=self._parts.total_steps,
            batch_size=self._parts.experiment.data.batch_size,
            examples_per_second=rate,
            losses=losses,
            validation=self._journal.validation,
        )
