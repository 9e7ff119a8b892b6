"""The HTTP server of a replica, over real connections, before an application that counts."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import aiohttp
import pytest

from pipeline.config import ConfigError
from pipeline.config.serving import ServingConfig
from pipeline.serving.deployment import ScoringReplica
from pipeline.serving.listener import Listener


class Echo:
    """Answers with the size of the body, after :attr:`answer` is set; counts what it met."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.answer = asyncio.Event()
        self.answer.set()

    async def __call__(self, scope, receive, send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message["body"])
            more = message["more_body"]
        self.begun += 1
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps([size]).encode()})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def listening(scenario: Callable[..., Awaitable[None]], listeners: int = 1) -> None:
    """Runs a scenario with so many listeners at one port, each with an application of its own."""

    async def main() -> None:
        config = ServingConfig(port=free_port(), shutdown_seconds=20)
        apps = [Echo() for _ in range(listeners)]
        servers = [Listener(app, config) for app in apps]
        for server in servers:
            await server.start()
        url = f"http://127.0.0.1:{config.port}/score"
        async with aiohttp.ClientSession() as session:
            await asyncio.wait_for(scenario(url, session, apps, servers), 30)
        for server in servers:
            await server.stop()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_bodies_arrive_whole_over_one_connection():
    async def scenario(url, session, apps, servers):
        for size in (0, 1, 400_000, 3_000_000, 7):
            async with session.post(url, data=b"x" * size) as answer:
                assert (answer.status, await answer.json(content_type=None)) == (200, [size])
                assert "server" not in answer.headers
        assert apps[0].cancelled == 0

    listening(scenario)


def test_listeners_share_a_port():
    async def scenario(url, session, apps, servers):
        for _ in range(64):
            async with session.post(url, headers={"connection": "close"}) as answer:
                assert answer.status == 200
        assert apps[0].begun + apps[1].begun == 64
        assert min(apps[0].begun, apps[1].begun) > 8  # 64 / 2, six standard deviations

        await servers[0].stop()
        assert [server.listens for server in servers] == [False, True]
        for _ in range(16):
            async with session.post(url, headers={"connection": "close"}) as answer:
                assert answer.status == 200

    listening(scenario, listeners=2)


def test_requests_in_flight_are_answered_at_the_end():
    async def scenario(url, session, apps, servers):
        apps[0].answer.clear()
        request = asyncio.ensure_future(session.post(url, data=b"abc"))
        await until(lambda: apps[0].begun == 1)
        stopping = asyncio.ensure_future(servers[0].stop())
        await asyncio.sleep(0.5)
        assert not stopping.done()
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.post(url)
        apps[0].answer.set()
        answer = await request
        assert (answer.status, await answer.json(content_type=None)) == (200, [3])
        await stopping
        assert apps[0].cancelled == 0

    listening(scenario)


def test_the_work_for_a_client_that_goes_away_ends():
    async def scenario(url, session, apps, servers):
        apps[0].answer.clear()
        request = asyncio.ensure_future(session.post(url, data=b"abc"))
        await until(lambda: apps[0].begun == 1)
        request.cancel()
        await until(lambda: apps[0].cancelled == 1)
        apps[0].answer.set()
        async with session.post(url, data=b"abcd") as answer:
            assert await answer.json(content_type=None) == [4]

    listening(scenario)


def test_a_server_that_ends_at_its_start_is_told():
    async def main() -> None:
        config = ServingConfig(port=free_port())
        listener = Listener(Echo(), config)
        listener._server.config.http = "no.such:Protocol"
        with pytest.raises(ConfigError, match=r"serving\.ingress: .* at its start \(Module.*'no'"):
            await asyncio.wait_for(listener.start(), 10)
        assert not listener.listens
        await listener.stop()
        socket.create_server((config.host, config.port)).close()

    asyncio.run(main())


def test_a_replica_that_does_not_listen_any_more_is_not_healthy():
    async def main() -> None:
        listener = Listener(Echo(), ServingConfig(port=free_port()))
        replica = SimpleNamespace(_listener=listener)
        await listener.start()
        await ScoringReplica.check_health(replica)
        await listener.stop()
        with pytest.raises(RuntimeError, match="does not listen any more"):
            await ScoringReplica.check_health(replica)
        replica._listener = None  # requests come by proxies
        await ScoringReplica.check_health(replica)

    asyncio.run(main())


def test_a_port_in_use_is_named():
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=rf"serving\.port: 127\.0\.0\.1:{port} cannot be"):
                await Listener(Echo(), ServingConfig(port=port)).start()

    asyncio.run(main())
