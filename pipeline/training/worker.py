"""What every worker does, start to end."""

from pathlib import Path

from pipeline.config import Experiment
from pipeline.training.control import Control
from pipeline.training.report import Reporter, TrainingResult
from pipeline.training.trainer import Trainer
from pipeline.training.worker_context import WorkerContext


def train_worker(
    experiment: Experiment,
    context: WorkerContext,
    run_folder: str | Path,
    reporter: Reporter,
    control: Control | None = None,
) -> TrainingResult:
    """Trains, keeps the best weights by validation, and scores them on every split.

    Where the run folder holds a checkpoint, training goes on from the newest sound one.

    Args:
        experiment: the run.
        context: this worker; its process group stands already.
        run_folder: shared by all workers, a path or a URI; holds ``transforms`` and ``dataset``
            (the manifest, and with ``evaluation.slices`` their values) and receives
            ``checkpoints``.
        reporter: told of progress and metrics; only the chief's is used.
        control: asks for a checkpoint or the end; None = nobody does.

    Raises:
        TrainingStoppedError: the control asked for the end; a checkpoint of the last step stands.
    """
    trainer = Trainer(experiment, context, str(run_folder), reporter, control)
    try:
        return trainer.run()
    finally:
        trainer.close()
