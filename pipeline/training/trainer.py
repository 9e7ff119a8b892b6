"""The loop of one worker: steps, what is due after them, checkpoints, the end."""

import time
from collections.abc import Iterator

from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.schedule import SaveSchedule
from pipeline.config import Experiment
from pipeline.config.locations import inside
from pipeline.data.batch import Batch
from pipeline.training.bad_batch import BadBatches
from pipeline.training.control import Control, NoControl, TrainingStoppedError
from pipeline.training.errors import TrainingError
from pipeline.training.evaluate import EvaluationAbandonedError
from pipeline.training.guard import BadLossError, Request
from pipeline.training.identity import run_identity
from pipeline.training.journal import Journal
from pipeline.training.measuring import Measuring
from pipeline.training.parts import TrainingParts
from pipeline.training.report import Reporter, TrainingResult
from pipeline.training.state import TrainingState
from pipeline.training.warm_start import warm_start
from pipeline.training.worker_context import WorkerContext


class Trainer(TrainingParts):
    """Trains from the newest checkpoint in the run folder on, or from the start.

    Args:
        experiment: the run.
        context: this worker; its process group stands already.
        run_folder: shared by all workers; holds ``transforms`` and ``dataset`` and receives the
            checkpoints; a path or a URI.
        reporter: told of progress and metrics; only the chief's is used.
        control: asks for a checkpoint or the end; None = nobody does.
    """

    def __init__(
        self,
        experiment: Experiment,
        context: WorkerContext,
        run_folder: str,
        reporter: Reporter,
        control: Control | None = None,
    ) -> None:
        self.control: Control = NoControl() if control is None else control
        self.control.at(0, "building the model")
        super().__init__(experiment, context, run_folder)
        self.reporter, self.run_folder = reporter, run_folder
        self.journal = Journal()
        self.state = TrainingState(self, self.journal)
        self.measuring = Measuring(self, self.journal, reporter, self._interrupt)
        self._schedule = SaveSchedule(experiment.checkpoint)
        self._bad_batches = BadBatches(experiment.failures, run_folder, context)
        self._saved_step = 0
        self._save_owed = False  # asked for in an evaluation
        self._mark = _Mark(0)
        self._began = 0.0

    def run(self) -> TrainingResult:
        """Trains, and scores the best weights on every split.

        Raises:
            TrainingStoppedError: it was asked to stop; on every rank, once a checkpoint stands.
        """
        self._checkpoints = Checkpoints(
            inside(self.run_folder, "checkpoints"),
            self.experiment.checkpoint,
            run_identity(self.experiment, self.manifest.digest),
            plan=self.plan.to_tree(),
        )
        try:
            self._resume()
            self._began = time.perf_counter() - self.journal.elapsed
            try:
                with self.trace:
                    self._train()
                return self._finish()
            except EvaluationAbandonedError:
                self._stop()
                raise AssertionError("the training was to stop") from None
        finally:
            self._checkpoints.close()

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The training batches of an epoch on the device, the wait for each on the clock."""
        loader = self.loaders["train"]
        batches = loader.epoch(epoch)
        if epoch + 1 < self.experiment.train.epochs:
            loader.prime(epoch + 1)
        return self.ahead.over(batches)

    def _resume(self) -> None:
        saved = self._checkpoints.newest()
        notes = [f"checkpoint passed over: {reason}" for reason in self._checkpoints.skipped]
        if saved is not None:
            self.control.at(saved.step, "loading a checkpoint")
            self._checkpoints.load(saved, self.state)
            self._saved_step = self.journal.step
            notes.append(f"going on after step {saved.step} of {self.total_steps}")
            if saved.world_size != self.context.world_size:
                notes[-1] += f", saved by {saved.world_size} workers"
        else:
            self.control.at(0, "taking over weights")
            started = warm_start(self.model, self.experiment, self.transforms, self.run_folder)
            if started is not None:
                notes.append(started)
                self.optimizers.restart_average()
        if self.context.is_chief:
            for note in notes:
                self.reporter.note(note)
        self._post_again()

    def _train(self) -> None:
        journal = self.journal
        self._mark = _Mark(journal.step)
        self.guard.request = self._request()
        self._settle(self.guard.agree())
        while journal.step < self.total_steps and not self.best_evaluation.exhausted:
            for batch in self.batches(journal.step // self.steps_per_epoch):
                self.control.at(journal.step + 1, "training step")
                self.guard.request = self._request()
                self._step(batch)
                self.trace.step()
                self._settle(self.guard.agreed)
                if self.best_evaluation.exhausted:
                    break
                self.control.at(journal.step + 1, "waiting for data")

    def _step(self, batch: Batch) -> None:
        journal = self.journal
        try:
            self.train_step(batch, journal.step)
            journal.rows_trained += batch.rows
        except BadLossError as bad:
            journal.skipped += 1
            self._checkpoints.wait()
            self._bad_batches.refuse(
                bad,
                batch,
                journal.step + 1,
                self.loaders["train"].sources(*divmod(journal.step, self.steps_per_epoch)),
                journal.skipped,
                self._standing(),
            )
        journal.step += 1

    def _settle(self, asked: Request) -> None:
        """Does what is due after the steps done so far, whether this process did them or one that
        was stopped before it came to that."""
        journal, train, step = self.journal, self.experiment.train, self.journal.step
        if asked == Request.STOP:
            self._stop()
        if step == 0:
            return
        at_end = step % self.steps_per_epoch == 0
        if journal.logged < step and (at_end or step % train.log_every == 0):
            rate = self._mark.pause(journal, step) * self.experiment.data.batch_size
            self.measuring.log(rate)
            self._mark = _Mark(step)
        best = False
        if journal.evaluated < step and (
            at_end or (train.evaluate_every is not None and step % train.evaluate_every == 0)
        ):
            self._mark.pause(journal, step)
            self.control.at(step, "evaluating")
            best = self.measuring.validate()
            self._mark = _Mark(step)
        due = at_end or self.best_evaluation.exhausted or self._schedule.due_by_step(step)
        due |= self._save_owed or asked == Request.SAVE
        if best or (due and self._saved_step < step):
            self._save(scored=best)

    def _save(self, scored: bool = False) -> None:
        step, best = self.journal.step, self.best_evaluation
        self.control.at(step, "saving a checkpoint")
        self._mark.pause(self.journal, step)
        self.journal.elapsed = time.perf_counter() - self._began
        with self.clock.phase("checkpoint"):
            if not self.optimizers.finite():
                raise TrainingError(
                    f"after step {step} a dense weight is not finite: lower the learning rates or "
                    f"set dense_optimizer.clip_norm; {self._standing()}"
                )
            self._checkpoints.save(
                self.state, step=step, score=best.score if scored else None, best_step=best.step
            )
        self._saved_step, self._save_owed = step, False
        self._schedule.saved()
        self._mark = _Mark(step)

    def _stop(self) -> None:
        """Leaves a checkpoint of the steps done and ends the training."""
        step = self.journal.step
        if self._saved_step < step:
            self._save()
        self.control.at(step, "finishing a checkpoint")
        self._checkpoints.wait()
        raise TrainingStoppedError(step, saved=step > 0)

    def _finish(self) -> TrainingResult:
        """Scores the best weights."""
        step, best = self.journal.step, self.best_evaluation
        self.control.at(step, "finishing a checkpoint")
        self._checkpoints.wait()
        # Where no evaluation gave a number there is no best one.
        saved = self._checkpoints.at(step if best.step is None else best.step)
        if saved is None:
            raise TrainingError(
                f"the checkpoint of step {best.step}, the best one, is gone or damaged; resume the "
                "run from an earlier one, or start it again"
            )
        self._checkpoints.load_model(saved, self.model)
        self.control.at(step, "scoring")
        self._post_again()  # whoever listened may have lost some
        return self.measuring.result(saved.location, self._began)

    def _post_again(self) -> None:
        """Posts all metrics of the run: who knows them already drops them."""
        for posting in self.journal.postings if self.context.is_chief else ():
            self.reporter.metrics(**posting)

    def _interrupt(self) -> None:
        """Called on every worker now and then during an evaluation."""
        self.guard.request = self._request()
        agreed = self.guard.agree()
        if agreed == Request.STOP:
            raise EvaluationAbandonedError
        self._save_owed |= agreed == Request.SAVE

    def _request(self) -> Request:
        if not self.context.is_chief:
            return Request.NONE
        by_time = Request.SAVE if self._schedule.due_by_time() else Request.NONE
        return max(self.control.request(), by_time)

    def _standing(self) -> str:
        """The checkpoint that stands, for messages."""
        if not self._saved_step:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {self._saved_step} stands"


class _Mark:
    """A point from which training time and speed are measured."""

    def __init__(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()
        self._paused = False

    def pause(self, journal: Journal, step: int) -> float:
        """Enters the time since then, once, into the journal; returns steps per second."""
        seconds = time.perf_counter() - self._time
        if not self._paused:
            journal.training_seconds += seconds
            self._paused = True
        return (step - self._step) / max(seconds, 1e-9)
