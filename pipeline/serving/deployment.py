"""The service as a Ray Serve application: replicas that each hold every model."""

import asyncio
import logging
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.requests import Request
from starlette.responses import Response

from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.serving.http import REQUESTS_AT_ONCE, ScoringHttp
from pipeline.serving.listener import Listener
from pipeline.serving.metrics import exposition
from pipeline.serving.service import ScoringService
from pipeline.serving.versions import VersionStore

APPLICATION = "ple-scoring"
DEPLOYMENT = "scoring"

_GATHER_SECONDS = 2.0
# A replica begins to wait for its last requests a moment after Ray Serve begins to wait for it.
_SHUTDOWN_MARGIN_SECONDS = 5.0
_RETRY_SECONDS = 1


class ScoringReplica:
    """One process of the service; ready once every model that answers is loaded and tried.

    Args:
        config, models, tracking_uri: what to serve.
        listens: requests come over HTTP to this process itself, not by Ray Serve's proxies.
    """

    _listener: Listener | None = None  # also where loading failed, and Ray Serve ends the replica

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        config: ServingConfig,
        models: list[ServedModelConfig],
        tracking_uri: str,
        listens: bool,
    ) -> None:
        logging.getLogger("pipeline").setLevel(logging.INFO)
        self._service = ScoringService(config, models, VersionStore(tracking_uri))
        self._http = ScoringHttp(self._service, self._exposition)
        self._context = serve.get_replica_context()
        self._id = self._context.replica_id.unique_id
        await self._service.start()
        if listens:
            self._listener = Listener(self._http, config)
            await self._listener.start()

    async def __del__(self) -> None:
        """Ray Serve awaits it at the end of a replica."""
        if self._listener is not None:
            await self._listener.stop()

    async def check_health(self) -> None:
        """Ray Serve replaces a replica in which this raises."""
        if self._listener is not None and not self._listener.listens:
            raise RuntimeError("the replica does not listen any more")

    async def __call__(self, request: Request) -> Response:
        return await self._http.respond(request)

    async def families(self) -> tuple[str, list[Any]]:
        """This replica's name and metrics, for the replica that answers /metrics."""
        return self._id, self._service.metrics.families()

    async def _exposition(self) -> bytes:
        if self._service.config.replicas == 1:
            return exposition({self._id: self._service.metrics.families()})
        # Ray Serve's own config may have given the application another name.
        handle = serve.get_deployment_handle(self._context.deployment, self._context.app_name)
        async with asyncio.timeout(_GATHER_SECONDS):
            found = await handle.broadcast("families").results_async()
        return exposition(dict(found))


def application(
    config: ServingConfig, models: list[ServedModelConfig], tracking_uri: str, *, direct: bool
) -> serve.Application:
    """The application to give to ``serve.run``.

    Args:
        config, models, tracking_uri: what to serve.
        direct: replicas listen at ``serving.port`` themselves.
    """
    deployment = serve.deployment(
        ScoringReplica,
        name=DEPLOYMENT,
        num_replicas=config.replicas,
        max_ongoing_requests=REQUESTS_AT_ONCE,
        # Those that wait in a proxy; beyond, it answers as a replica would.
        max_queued_requests=REQUESTS_AT_ONCE,
        backpressure_config=BackpressureConfig(retry_after_s=_RETRY_SECONDS),
        graceful_shutdown_timeout_s=config.shutdown_seconds + _SHUTDOWN_MARGIN_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": config.cpus_per_replica},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return deployment.bind(config, models, tracking_uri, direct)
