"""Launches the workers of one training with Ray Train and returns what they leave."""

import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.cluster.board import BoardLine, News, Posting, Stopped, open_board
from pipeline.cluster.failure import Failure
from pipeline.cluster.nodes import even_local_size, worker_environment, worker_resources
from pipeline.cluster.session import Placement
from pipeline.cluster.stopping import TRAINING_THREAD, StopSignals
from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.config.locations import inside
from pipeline.data.storage import Store, open_store
from pipeline.training.guard import Request
from pipeline.training.report import Progress, SilentReporter, TrainingResult

_POLL_SECONDS = 0.5
# Of the time to stop in, what the driver itself needs at the end.
_DRIVER_SECONDS = 10.0
# How long Ray Train may take to notice that the workers have ended.
_NOTICE_SECONDS = 20.0


class WorkersFailedError(RuntimeError):
    """The workers could not finish; the message is the first failure's own."""


@dataclass(frozen=True)
class Listener:
    """What the driver does with news of its workers; called from its main thread, in order."""

    on_progress: Callable[[Progress], None]
    on_metrics: Callable[[Posting], None]
    on_note: Callable[[str], None]

    def hear(self, news: News) -> None:
        for note in news.notes:
            self.on_note(note)
        for posting in news.postings:
            self.on_metrics(posting)
        if news.progress is not None:
            self.on_progress(news.progress)


def launch_training(
    experiment: Experiment,
    placement: Placement,
    *,
    run_name: str,
    run_folder: str,
    listener: Listener,
    signals: StopSignals,
) -> TrainingResult | Stopped:
    """Runs ``train_worker`` on every worker and waits for the end.

    Workers that die are started again, ``failures.max_restarts`` times, and go on from the newest
    checkpoint in the run folder; where the cluster has no room for all of them, with as few as
    ``train.min_workers``.

    Args:
        run_name: begins the name of the Ray Train run.
        run_folder: shared by driver and workers; a path or a URI.
        listener: is told what the workers tell.
        signals: when they ask for the end, the workers do.

    Returns:
        What training left; or that it was stopped, in time or not.

    Raises:
        WorkersFailedError: a worker raised what another try would raise again, or died too often.
    """
    restarts = experiment.failures.max_restarts
    board = open_board(restarts)
    store = open_store(inside(run_folder, "ray"))
    config = {
        "experiment": experiment.model_dump(mode="json"),
        "run_folder": run_folder,
        "device": placement.device,
        "threads": placement.threads,
        "board": board,
    }

    def start() -> _Fit:
        return _Fit(_trainer(experiment, placement, config, run_name, store))

    try:
        return _wait(start, restarts, board, listener, signals)
    finally:
        _remove(store)


def _trainer(
    experiment: Experiment,
    placement: Placement,
    config: dict[str, Any],
    run_name: str,
    store: Store,
) -> TorchTrainer:
    workers: int | tuple[int, int] = placement.workers
    if placement.min_workers is not None:
        workers = (placement.min_workers, placement.workers)
    return TorchTrainer(
        _worker_entry,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=placement.device == "cuda",
            resources_per_worker=worker_resources(experiment.ray, placement.device),
        ),
        run_config=ray.train.RunConfig(
            # A name of its own: Ray Train would take an old run's state up again.
            name=f"{run_name}-{uuid.uuid4().hex[:8]}",
            storage_path=store.root,
            storage_filesystem=store.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=experiment.failures.max_restarts),
            worker_runtime_env=worker_environment(experiment.ray),
        ),
        torch_config=TorchConfig(
            backend="nccl" if placement.device == "cuda" else "gloo",
            timeout_s=experiment.failures.collective_timeout_seconds,
        ),
    )


def _wait(
    start: Callable[[], "_Fit"],
    restarts: int,
    board: Any,
    listener: Listener,
    signals: StopSignals,
) -> TrainingResult | Stopped:
    fit, asked = start(), False
    while True:
        ended = fit.ended.wait(_POLL_SECONDS)
        if signals.requested.is_set():
            if not asked:
                listener.on_note("stopping ...")
            asked = True
            board.ask.remote(Request.STOP)
        news: News = ray.get(board.take.remote())
        listener.hear(news)
        if news.stopped is not None:
            fit.ended.wait(min(_NOTICE_SECONDS, 0.5 * signals.seconds_left))
            return news.stopped
        if asked and not news.entered:
            fit.ended.wait(min(_NOTICE_SECONDS, 0.5 * signals.seconds_left))
            return Stopped(0, saved=False)
        if ended and isinstance(fit.error, ray.exceptions.RayActorError) and restarts:
            # Ray Train's controller died, and the workers with it.
            restarts -= 1
            fit = start()
        elif news.over or (ended and fit.error is not None):
            fit.ended.wait(_NOTICE_SECONDS)
            raise WorkersFailedError(ray.get(board.why.remote(str(fit.error)))) from fit.error
        elif ended:
            result: TrainingResult | None = ray.get(board.result.remote())
            assert result is not None, "the chief worker posted no result"
            return result
        elif asked and signals.seconds_left < min(_DRIVER_SECONDS, 0.5 * signals.within):
            return Stopped(0, saved=False)


class _Fit:
    """Ray Train's blocking call in a thread: the main thread stays free for signals."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self.ended = threading.Event()
        self.error: Exception | None = None
        self._trainer = trainer
        threading.Thread(target=self._run, name=TRAINING_THREAD, daemon=True).start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()


def _worker_entry(config: dict[str, Any]) -> None:
    # Imported here: the driver needs neither torchrec nor its start-up time to launch.
    from ray.train.torch import get_device

    from pipeline.training.control import TrainingStoppedError
    from pipeline.training.worker import train_worker
    from pipeline.training.worker_context import WorkerContext

    ray_context, board = ray.train.get_context(), config["board"]
    rank, workers = ray_context.get_world_rank(), ray_context.get_world_size()
    if not ray.get(board.enter.remote(rank, workers)):
        return
    line = BoardLine(board, rank)
    context = WorkerContext(
        rank=rank,
        world_size=workers,
        local_world_size=even_local_size(ray_context.get_local_world_size()),
        device=get_device(),
        threads=config["threads"],
    )
    reporter = line if context.is_chief else SilentReporter()
    experiment = parse_experiment(config["experiment"])
    try:
        result = train_worker(experiment, context, config["run_folder"], reporter, line)
        if context.is_chief:
            ray.get(board.finish.remote(result))
    except TrainingStoppedError as stop:
        if context.is_chief:
            ray.get(board.stop.remote(Stopped(stop.step, stop.saved)))
    except Exception as error:
        ray.get(board.fail.remote(Failure.of(rank, error)))
        raise
    finally:
        line.close()


def _remove(store: Store) -> None:
    """What Ray Train leaves is of no use: checkpoints are not its own."""
    with suppress(OSError):
        store.filesystem.delete_dir(store.root)
