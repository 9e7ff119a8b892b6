"""A Ray session for one run: start one here or join one, and see what it has room for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from pipeline.config import ConfigError, Experiment

_DEFAULT_OBJECT_STORE_MB = 256


@dataclass(frozen=True)
class Placement:
    """What the workers of a run get.

    Attributes:
        workers: number of worker processes.
        device: ``cpu`` or ``cuda``.
        cpus_per_worker: CPUs Ray reserves for each.
        threads: intra-op threads of each.
    """

    workers: int
    device: str
    cpus_per_worker: int
    threads: int


@contextmanager
def ray_session(experiment: Experiment) -> Iterator[None]:
    """Joins ``ray.address``, or starts Ray here and stops it at the end.

    Raises:
        ConfigError: nothing answers at ``ray.address``.
    """
    config = experiment.ray
    if config.address is None:
        store = (config.object_store_mb or _DEFAULT_OBJECT_STORE_MB) * 2**20
        ray.init(
            address="local",
            object_store_memory=store,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    else:
        try:
            ray.init(address=config.address, log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise ConfigError(
                f"ray.address: no Ray cluster answers at {config.address!r}; start one with "
                "`ray start --head`, or leave ray.address out to start one here"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def resolve_placement(experiment: Experiment) -> Placement:
    """Turns ``auto`` into numbers and refuses what the cluster has no room for.

    Raises:
        ConfigError: more workers than streams, CPUs or GPUs.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    train, per_worker = experiment.train, experiment.ray.cpus_per_worker
    streams = experiment.data.streams
    device = train.device
    if device == "auto":
        wanted = 1 if train.workers == "auto" else train.workers
        device = "cuda" if gpus >= wanted else "cpu"
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
    if workers * per_worker > cpus:
        raise ConfigError(
            f"train.workers: {workers} workers with {per_worker} CPU each need "
            f"{workers * per_worker} CPUs, Ray has {cpus}; lower train.workers or "
            "ray.cpus_per_worker, use train.workers=auto, or join a larger cluster with ray.address"
        )
    if device == "cuda" and workers > gpus:
        raise ConfigError(
            f"train.workers: {workers} workers on cuda need {workers} GPUs, Ray has {gpus}; "
            "lower train.workers or use train.device=cpu"
        )
    return Placement(workers, device, per_worker, _threads(experiment, workers))


def _threads(experiment: Experiment, workers: int) -> int:
    if experiment.train.threads != "auto":
        return experiment.train.threads
    if experiment.ray.address is not None:
        return experiment.ray.cpus_per_worker
    # Ray runs here for this job alone: its workers share all cores this process may use.
    return max(experiment.ray.cpus_per_worker, len(os.sched_getaffinity(0)) // workers)
