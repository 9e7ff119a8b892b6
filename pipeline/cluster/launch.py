"""Launches the workers of one training with Ray Train and returns what they leave."""

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.cluster.board import BoardReporter, Failure, Posting, open_board
from pipeline.cluster.session import Placement
from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.training.report import Progress, SilentReporter, TrainingResult

_POLL_SECONDS = 0.5


class WorkersFailedError(RuntimeError):
    """The workers could not finish; the message is the first failure's own."""


def launch_training(
    experiment: Experiment,
    placement: Placement,
    *,
    run_name: str,
    run_folder: Path,
    on_progress: Callable[[Progress], None],
    on_metrics: Callable[[Posting], None],
) -> TrainingResult:
    """Runs ``train_worker`` on every worker and waits for the end.

    Args:
        run_name: names the Ray Train run; must be new.
        run_folder: shared by driver and workers.
        on_progress, on_metrics: called from a thread of the driver, postings in order.

    Raises:
        WorkersFailedError: a worker raised or died.
    """
    board = open_board()
    trainer = TorchTrainer(
        _worker_entry,
        train_loop_config={
            "experiment": experiment.model_dump(mode="json"),
            "run_folder": str(run_folder),
            "device": placement.device,
            "threads": placement.threads,
            "board": board,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.device == "cuda",
            resources_per_worker={"CPU": placement.cpus_per_worker}
            | ({"GPU": 1} if placement.device == "cuda" else {}),
        ),
        run_config=ray.train.RunConfig(name=run_name, storage_path=str(run_folder.parent / "ray")),
        torch_config=TorchConfig(backend="nccl" if placement.device == "cuda" else "gloo"),
    )
    with _Relay(board, on_progress, on_metrics):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise WorkersFailedError(_cause(ray.get(board.failures.remote()), error)) from error
    result: TrainingResult | None = ray.get(board.result.remote())
    assert result is not None, "the chief worker posted no result"
    return result


def _worker_entry(config: dict[str, Any]) -> None:
    # Imported here: the driver needs neither torchrec nor its start-up time to launch.
    from ray.train.torch import get_device

    from pipeline.training.worker import train_worker
    from pipeline.training.worker_context import WorkerContext

    ray_context = ray.train.get_context()
    context = WorkerContext(
        rank=ray_context.get_world_rank(),
        world_size=ray_context.get_world_size(),
        local_world_size=ray_context.get_local_world_size(),
        device=get_device(),
        threads=config["threads"],
    )
    reporter = BoardReporter(config["board"]) if context.is_chief else SilentReporter()
    experiment = parse_experiment(config["experiment"])
    try:
        result = train_worker(experiment, context, Path(config["run_folder"]), reporter)
    except Exception as error:
        expected = type(error).__module__.startswith(("pipeline.", "ple."))
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        failure = Failure(context.rank, message, expected, traceback.format_exc())
        ray.get(config["board"].fail.remote(failure))
        raise
    if isinstance(reporter, BoardReporter):
        reporter.finish(result)


def _cause(failures: list[Failure], error: Exception) -> str:
    """The message of the failure that brought the others about, as far as that can be told."""
    if not failures:
        # No exception was posted: a process died (killed, out of memory, lost node).
        return f"a worker process died: {error}; its log is in Ray's session folder"
    # A worker whose peer has gone reports a broken connection: the peer's own error says more.
    first = min(failures, key=lambda f: (not f.expected, "peer" in f.message, f.rank))
    return first.message if first.expected else f"{first.message}\n{first.trace}"


class _Relay:
    """Polls the board from a thread while the driver waits for the workers."""

    def __init__(
        self,
        board: Any,
        on_progress: Callable[[Progress], None],
        on_metrics: Callable[[Posting], None],
    ) -> None:
        self._board, self._on_progress, self._on_metrics = board, on_progress, on_metrics
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="board-relay", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._forward()

    def _run(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._forward()

    def _forward(self) -> None:
        postings, progress = ray.get(self._board.take.remote())
        for posting in postings:
            self._on_metrics(posting)
        if progress is not None:
            self._on_progress(progress)
