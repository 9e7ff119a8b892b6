"""Starts the service on Ray Serve and stops it so that requests in flight are answered."""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from pipeline.cluster.session import ray_cluster
from pipeline.config import ConfigError
from pipeline.config.schema import RayConfig
from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.serving.deployment import APPLICATION, application
from pipeline.serving.versions import VersionId, VersionStore

CHAMPION = "champion"

# Ray puts its workers behind everything else on the machine (nice 15), as suits batch work; here
# clients wait for them. Added to the priority of this process.
_NICENESS = 0


class ServeError(RuntimeError):
    """The service did not start; the message says why."""


@dataclass(frozen=True)
class RunningService:
    """A service that answers.

    Attributes:
        url: its address, without a slash at the end.
        versions: what each entry of ``serving.models`` meant at the start.
    """

    url: str
    versions: dict[str, VersionId]


def served_models(config: ServingConfig, model_name: str) -> list[ServedModelConfig]:
    """The entries of ``serving.models``; the champion of `model_name` where there are none."""
    if config.models:
        return list(config.models)
    uri = f"models:/{model_name}@{CHAMPION}"
    return [ServedModelConfig(name=CHAMPION, uri=uri, traffic=1.0)]


def listens_directly(config: ServingConfig, ray_config: RayConfig) -> bool:
    """Whether replicas have HTTP servers of their own: ``serving.ingress``.

    Raises:
        ConfigError: they should, in a cluster that is joined.
    """
    if ray_config.address is None:
        return config.ingress != "proxy"
    if config.ingress == "direct":
        raise ConfigError(
            "serving.ingress: direct needs a Ray that starts here; in a cluster that is joined "
            "(ray.address) replicas run on nodes clients do not know, while every node has a "
            "proxy: use serving.ingress=proxy, or leave it out"
        )
    return False


@contextmanager
def running_service(
    config: ServingConfig,
    models: list[ServedModelConfig],
    tracking_uri: str,
    ray_config: RayConfig,
    stopped: threading.Event | None = None,
) -> Iterator[RunningService]:
    """Starts Ray (or joins it), Serve and the application; stops them at the end.

    ``stopped`` is set by SIGTERM or SIGINT from the moment Ray runs; only in the main thread.

    At the end no new requests are taken, and those in flight have ``serving.shutdown_seconds``.

    Raises:
        TrackingError: MLflow does not answer, or has no such version.
        ConfigError: the port is taken, the cluster has no room, or ``direct`` in a joined one.
        ServeError: a model could not be loaded.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    direct = listens_directly(config, ray_config)
    store = VersionStore(tracking_uri)
    # Before Ray starts: what is wrong here would else show after many seconds, three times.
    versions = {model.name: store.resolve(model.uri) for model in models if model.traffic}
    with (
        _port_kept(config, ray_config),
        ray_cluster(ray_config, worker_niceness=_NICENESS),
        _set_by_signals(stopped),
    ):
        _check_room(config)
        try:
            serve.start(
                proxy_location=ProxyLocation.Disabled if direct else ProxyLocation.EveryNode,
                http_options=HTTPOptions(host=config.host, port=config.port),
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            serve.run(
                application(config, models, tracking_uri, direct=direct),
                name=APPLICATION,
                route_prefix=None if direct else "/",
            )
            yield RunningService(f"http://{config.host}:{config.port}", versions)
        except RuntimeError as error:
            if type(error).__module__.startswith("pipeline."):
                raise
            raise ServeError(f"the service did not start: {_reason(error)}") from error
        finally:
            # Serve itself ends with a Ray that was started here; elsewhere others may use it.
            serve.delete(APPLICATION)


@contextmanager
def _port_kept(config: ServingConfig, ray_config: RayConfig) -> Iterator[None]:
    """The port is free, and no other service of this machine takes it until the end.

    Replicas listen at one port together, so those of another service could join them unnoticed.
    """
    if ray_config.address is not None:  # the proxies run on the cluster's nodes
        yield
        return
    # An abstract name: of this network namespace, as ports are, and gone with the process.
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0ple-serving-{config.port}")
        except OSError:
            raise ConfigError(
                f"serving.port: another service on this machine has {config.port}; stop it, or "
                "choose another port"
            ) from None
        try:
            socket.create_server((config.host, config.port)).close()
        except OSError as error:
            raise ConfigError(
                f"serving.port: {config.host}:{config.port} cannot be bound ({error.strerror}); "
                "stop what uses it, or choose another port"
            ) from None
        yield


@contextmanager
def _set_by_signals(stopped: threading.Event | None) -> Iterator[None]:
    # After Ray has started: it puts a handler of its own in place.
    handled = (signal.SIGTERM, signal.SIGINT) if stopped is not None else ()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in handled}  # type: ignore[union-attr]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_room(config: ServingConfig) -> None:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if config.replicas * config.cpus_per_replica > cpus:
        raise ConfigError(
            f"serving.replicas: {config.replicas} replicas with {config.cpus_per_replica} CPU each "
            f"need {config.replicas * config.cpus_per_replica} CPUs, Ray has {cpus}; lower one"
        )


def _reason(error: RuntimeError) -> str:
    """The last line of what Ray says, which is the exception of the replica."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    known = ("VersionError", "TrackingError", "ConfigError")
    faults = [line for line in lines if any(name in line for name in known)]
    return (faults or lines or ["no reason given"])[-1]
