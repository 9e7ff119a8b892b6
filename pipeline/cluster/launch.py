"""Launches the workers of one training with Ray Train and returns what they leave."""

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.cluster.board import BoardReporter, Failure, Posting, open_board
from pipeline.cluster.session import Placement
from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.training.report import Progress, SilentReporter, TrainingResult

_POLL_SECONDS = 0.5
# How gloo and NCCL name a connection whose other end has gone.
_LOST_PEER = ("peer", "Connection reset", "NCCL", "Socket", "closed connection")


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
            raise WorkersFailedError(_explain(board, placement.workers, error)) from error
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


def _explain(board: Any, workers: int, error: Exception) -> str:
    try:
        failures = ray.get(board.failures.remote())
    except ray.exceptions.RayError:
        failures = []
    return failure_message(failures, workers, error)


def failure_message(failures: list[Failure], workers: int, error: Exception) -> str:
    """The failure that brought the others about, as far as that can be told.

    Args:
        failures: exceptions the workers posted before they ended.
        workers: how many there were.
        error: what Ray Train raised.
    """
    own = [f for f in failures if f.expected or not _is_lost_peer(f)]
    if own:
        first = min(own, key=lambda f: (not f.expected, f.rank))
        return first.message if first.expected else f"{first.message}\n{first.trace}"
    # Nobody failed by itself: a process died without a word, and others missed it.
    silent = sorted(set(range(workers)) - {f.rank for f in failures})
    return (
        f"worker(s) {', '.join(map(str, silent)) or 'unknown'} of {workers} died (killed, out of "
        "memory, or a lost node); if memory ran out, lower data.batch_size, data.shuffle_rows or "
        f"train.workers; Ray's logs tell more: {str(error).splitlines()[-1]}"
    )


def _is_lost_peer(failure: Failure) -> bool:
    return any(word in failure.message for word in _LOST_PEER)


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
        try:
            postings, progress = ray.get(self._board.take.remote())
        except ray.exceptions.RayError:
            # The board went with its node or session; the workers' own fate is told by fit().
            return
        for posting in postings:
            self._on_metrics(posting)
        if progress is not None:
            self._on_progress(progress)
