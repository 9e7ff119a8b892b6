"""An HTTP server within a replica: requests come to the process that scores them.

Replicas of a machine listen at one port, among which the kernel divides connections.
"""

import asyncio
import math
import socket
from typing import Any

import uvicorn

from pipeline.config import ConfigError
from pipeline.config.serving import ServingConfig

_STARTED_SECONDS = 0.01


class Listener:
    """Serves an ASGI application at ``serving.host`` and ``serving.port``.

    Belongs to one event loop.

    Args:
        app: the application; a request whose client has gone is cancelled.
        config: address, and how long requests in flight may take at the end.
    """

    def __init__(self, app: Any, config: ServingConfig) -> None:
        self._address = config.host, config.port
        self._server = uvicorn.Server(
            uvicorn.Config(
                _EndsWithClient(app),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # strangers' garbage is no business of the log
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(config.shutdown_seconds),
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def listens(self) -> bool:
        """Whether requests are taken."""
        return self._task is not None and not self._task.done() and not self._server.should_exit

    async def start(self) -> None:
        """Listens from here on.

        Raises:
            ConfigError: the address cannot be bound, or the server does not start.
        """
        host, port = self._address
        try:
            listening = socket.create_server(self._address, reuse_port=True)
        except OSError as error:
            raise ConfigError(
                f"serving.port: {host}:{port} cannot be bound ({error.strerror}); stop what uses "
                "it, or choose another port"
            ) from None
        task = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if task.done():
                listening.close()
                raise ConfigError(
                    f"serving.ingress: the HTTP server of a replica ended at its start "
                    f"({task.exception()!r}); mend that, or use serving.ingress=proxy"
                )
            await asyncio.sleep(_STARTED_SECONDS)
        self._task = task

    async def stop(self) -> None:
        """Takes no new requests, answers those in flight, and returns when that is done."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task


class _EndsWithClient:
    """An ASGI application whose work for a client ends when the client goes away."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = asyncio.current_task()
        assert request is not None
        gone = False
        watch: asyncio.Task[None] | None = None

        async def until_gone() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            request.cancel()

        async def watched() -> Any:
            nonlocal watch
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                # The body is there: what comes next is the client's going.
                watch = asyncio.create_task(until_gone())
            return message

        try:
            await self._app(scope, watched, send)
        except asyncio.CancelledError:
            if not gone:
                raise
        finally:
            if watch is not None:
                watch.cancel()
