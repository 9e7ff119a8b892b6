"""A service of the demo's model on a free loopback port, for the benchmark's parts."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.benchmark.served_model import DemoRegistry
from pipeline.config.schema import RayConfig
from pipeline.config.serving import ServingConfig
from pipeline.serving.launch import running_service, served_models


@contextmanager
def demo_service(registry: DemoRegistry) -> Iterator[tuple[str, ServingConfig]]:
    """URL and settings of one replica that serves the champion on one thread."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = ServingConfig(port=port, threads=1)
    models = served_models(config, registry.experiment.name)
    with running_service(config, models, registry.tracking_uri, RayConfig()) as service:
        yield service.url, config
