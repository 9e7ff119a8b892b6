"""A Ray session for one run: start one here or join one, and see what it has room for."""

import importlib.metadata
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from pipeline.cluster.nodes import alive_nodes, check_nodes
from pipeline.cluster.stopping import still_waited_for
from pipeline.config import ConfigError, Experiment
from pipeline.config.features import MAP_BUCKETS
from pipeline.config.schema import RayConfig

_DEFAULT_OBJECT_STORE_MB = 256
_CONNECT_SECONDS = 4.0


@dataclass(frozen=True)
class Placement:
    """What the workers of a run get.

    Attributes:
        workers: number of worker processes.
        min_workers: with how few the run goes on where there is no room for all; None = it waits.
        device: ``cpu`` or ``cuda``.
        cpus_per_worker: CPUs Ray reserves for each.
        threads: intra-op threads of each.
    """

    workers: int
    device: str
    cpus_per_worker: int
    threads: int
    min_workers: int | None = None

    @property
    def fewest(self) -> int:
        """Workers with which the run can go on."""
        return self.workers if self.min_workers is None else self.min_workers


@contextmanager
def ray_session(experiment: Experiment) -> Iterator[None]:
    """Joins ``ray.address``, or starts Ray here and stops it at the end.

    Raises:
        ConfigError: nothing answers at ``ray.address``.
    """
    with ray_cluster(experiment.ray):
        yield


class ClusterError(RuntimeError):
    """Ray does not start; the message says what to do."""


@contextmanager
def ray_cluster(config: RayConfig, *, worker_niceness: int | None = None) -> Iterator[None]:
    """The same for jobs that have no experiment. Raises ClusterError too: Ray does not start.

    ``worker_niceness``: what a Ray that starts here adds to its workers'; None = its default.
    """
    if config.address is None:
        store = (config.object_store_mb or _DEFAULT_OBJECT_STORE_MB) * 2**20
        settings = {} if worker_niceness is None else {"worker_niceness": worker_niceness}
        try:
            ray.init(
                address="local",
                object_store_memory=store,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _system_config=settings,
            )
        except Exception as error:  # Ray raises plain ones
            raise ClusterError(
                f"Ray did not start on this machine: {error}; it may be too busy or short of "
                "memory: try again, or name a cluster in ray.address"
            ) from error
    else:
        try:
            _check_address(config.address)
            ray.init(address=config.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"ray.address: no Ray cluster answers at {config.address!r} ({error}); start one "
                "with `ray start --head`, or leave ray.address out to start one here"
            ) from error
    try:
        yield
    finally:
        if not still_waited_for():
            ray.shutdown()


def resolve_placement(experiment: Experiment) -> Placement:
    """Turns ``auto`` into numbers and refuses what the cluster has no room for.

    Raises:
        ConfigError: more workers than streams, CPUs or GPUs, nodes without room for them or with
            unlike GPUs, or workers that cannot share the buckets of a zero_collision feature
            evenly.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    train, per_worker = experiment.train, experiment.ray.cpus_per_worker
    streams = experiment.data.streams
    device = train.device
    if device == "auto":
        wanted = 1 if train.workers == "auto" else train.min_workers or train.workers
        device = "cuda" if gpus >= wanted and cuda_stack_missing() is None else "cpu"
    elif device == "cuda" and cuda_stack_missing() is not None:
        raise ConfigError(
            f"train.device: cuda is not usable here: {cuda_stack_missing()}; install the CUDA "
            "stack (make clean, then make install STACK=cuda), or use train.device=cpu"
        )
    if train.workers == "auto":
        units = gpus if device == "cuda" else cpus // per_worker
        workers = max(1, min(units, streams))
    else:
        workers = train.workers
    if workers > streams:
        raise ConfigError(
            f"train.workers: {workers} workers share {streams} streams; raise data.streams "
            "to the next power of two, or lower train.workers"
        )
    fewest = workers if train.min_workers is None else train.min_workers
    for count in range(fewest, workers + 1):
        _check_buckets(experiment, count)
    if fewest * per_worker > cpus:
        raise ConfigError(
            f"train.workers: {fewest} workers with {per_worker} CPU each need "
            f"{fewest * per_worker} CPUs, Ray has {cpus}; lower train.workers or "
            "ray.cpus_per_worker, use train.workers=auto, or join a larger cluster with ray.address"
        )
    if device == "cuda" and fewest > gpus:
        raise ConfigError(
            f"train.workers: {fewest} workers on cuda need {fewest} GPUs, Ray has {gpus}; "
            "lower train.workers or use train.device=cpu"
        )
    check_nodes(alive_nodes(), experiment.ray, device, fewest)
    return Placement(workers, device, per_worker, _threads(experiment, workers), train.min_workers)


def waiting_for(placement: Placement) -> str | None:
    """What the cluster is short of at this moment, in words; None if the workers fit at once."""
    free = ray.available_resources()
    cpus, gpus = int(free.get("CPU", 0)), int(free.get("GPU", 0))
    wanted = placement.fewest * placement.cpus_per_worker
    if wanted > cpus:
        return f"waiting for {wanted} CPUs, the cluster has {cpus} free"
    if placement.device == "cuda" and placement.fewest > gpus:
        return f"waiting for {placement.fewest} GPUs, the cluster has {gpus} free"
    return None


def cuda_stack_missing() -> str | None:
    """What keeps this environment from training on CUDA; None if nothing does.

    The driver may sit on a node without a GPU, so the installed builds are judged, not devices;
    all nodes run the same locked requirements.
    """
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    try:
        importlib.metadata.version("fbgemm-gpu-cpu")
    except importlib.metadata.PackageNotFoundError:
        return None
    return "fbgemm-gpu-cpu is installed, whose tables are on the CPU only"


def _check_buckets(experiment: Experiment, workers: int) -> None:
    for feature in experiment.features.categorical:
        buckets = feature.map_buckets or MAP_BUCKETS
        if feature.encoder == "zero_collision" and buckets % workers:
            raise ConfigError(
                f"features.categorical.{feature.name}.map_buckets: {buckets} buckets cannot be "
                f"shared evenly by {workers} workers; set it to a multiple of {workers} that "
                "divides `rows`, or change train.workers"
            )


def _check_address(address: str) -> None:
    # ray.init would go on trying for minutes.
    host, _, port = address.partition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _threads(experiment: Experiment, workers: int) -> int:
    if experiment.train.threads != "auto":
        return experiment.train.threads
    if experiment.ray.address is not None:
        return experiment.ray.cpus_per_worker
    # Ray runs here for this job alone: its workers share all cores this process may use.
    return max(experiment.ray.cpus_per_worker, len(os.sched_getaffinity(0)) // workers)
