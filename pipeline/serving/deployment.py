"""The service as a Ray Serve application: replicas that each hold every model."""

import asyncio
import logging
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.serving.http import ScoringHttp
from pipeline.serving.metrics import exposition
from pipeline.serving.service import ScoringService
from pipeline.serving.versions import VersionStore

APPLICATION = "ple-scoring"
DEPLOYMENT = "scoring"

# Requests a replica works on at once; rows that wait are bounded by serving.batching.queue_rows.
_ONGOING_REQUESTS = 512
_GATHER_SECONDS = 2.0


class ScoringReplica:
    """One process of the service; ready once every model that answers is loaded and tried."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, config: ServingConfig, models: list[ServedModelConfig], tracking_uri: str
    ) -> None:
        logging.getLogger("pipeline").setLevel(logging.INFO)
        self._service = ScoringService(config, models, VersionStore(tracking_uri))
        self._http = ScoringHttp(self._service, self._exposition)
        self._context = serve.get_replica_context()
        self._id = self._context.replica_id.unique_id
        await self._service.start()

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
    config: ServingConfig, models: list[ServedModelConfig], tracking_uri: str
) -> serve.Application:
    """The application to give to ``serve.run``."""
    deployment = serve.deployment(
        ScoringReplica,
        name=DEPLOYMENT,
        num_replicas=config.replicas,
        max_ongoing_requests=_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=config.shutdown_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": config.cpus_per_replica},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return deployment.bind(config, models, tracking_uri)
