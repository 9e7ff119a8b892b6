"""The HTTP side before a service that answers when told to."""

import asyncio
import json

import numpy as np
from starlette.requests import Request

from pipeline.config.serving import ServingConfig
from pipeline.serving.http import REQUESTS_AT_ONCE, ScoringHttp
from pipeline.serving.metrics import ServiceMetrics


class Held:
    """Holds every body until :attr:`answer` is set."""

    def __init__(self) -> None:
        self.config, self.metrics = ServingConfig(), ServiceMetrics()
        self.bodies: list[bytes] = []
        self.answer = asyncio.Event()

    async def score(self, body: bytes, **_: object) -> "Held":
        self.bodies.append(body)
        await self.answer.wait()
        return self

    def json(self) -> bytes:
        return b"{}"

    def health(self) -> tuple[bool, dict[str, str]]:
        return True, {"status": "ready"}


def request(method: str = "POST", path: str = "/score") -> Request:
    async def receive():
        return {"type": "http.request", "body": b"a body", "more_body": False}

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
    return Request(scope, receive)


def test_more_requests_at_once_than_bodies_are_held_are_refused():
    async def main() -> None:
        service = Held()
        http = ScoringHttp(service)
        taken = [asyncio.ensure_future(http.respond(request())) for _ in range(REQUESTS_AT_ONCE)]
        while len(service.bodies) < REQUESTS_AT_ONCE:
            await asyncio.sleep(0)
        refused = await asyncio.wait_for(http.respond(request()), 5)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert json.loads(refused.body)["error"]["code"] == "overloaded"
        assert len(service.bodies) == REQUESTS_AT_ONCE
        assert (await http.respond(request("GET", "/health"))).status_code == 200

        taken.pop().cancel()  # a client that goes away makes room
        await asyncio.sleep(0)
        taken.append(asyncio.ensure_future(http.respond(request())))
        await asyncio.sleep(0)
        service.answer.set()
        assert {answer.status_code for answer in await asyncio.gather(*taken)} == {200}
        counted = service.metrics.registry.get_sample_value
        outcomes = {"ok": REQUESTS_AT_ONCE, "overloaded": 1, "client_went_away": 1}
        found = {o: counted("ple_serving_requests_total", {"outcome": o}) for o in outcomes}
        np.testing.assert_equal(found, outcomes)

    asyncio.run(main())
