"""Thousands of malformed requests against a service: every answer a 4xx with a reason.

Also: no path of the machine and no traceback in any answer, no growth of memory, alive after.
"""

import asyncio
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.benchmark.malformed import Malformed, MalformedRequests
from pipeline.benchmark.served_model import demo_registry
from pipeline.benchmark.service import demo_service

_LEAKS = re.compile(
    r"/(?:home|tmp|work|usr|root|var|opt)/|site-packages|Traceback|\.py\b|File \"|0x[0-9a-f]{6}"
)
_RSS, _CPU = (
    re.compile(rb"process_" + name + rb"\{[^}]*\} ([0-9.e+]+)")
    for name in (b"resident_memory_bytes", b"cpu_seconds_total")
)
_SHOWN = 20
# The first requests fill caches and thread pools; memory counts from there.
_WARM_UP = 500


class FuzzError(RuntimeError):
    """The service did not hold; the message shows the first wrong answers."""


@dataclass
class FuzzResult:
    """What came back.

    Attributes:
        statuses: how many answers of each status.
        codes: how many of each ``error.code``.
        wrong: descriptions of answers that are not as they should be.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def measure_fuzz(requests: int, seed: int) -> dict[str, Any]:
    """Starts a service of the demo's model and sends it malformed requests.

    Raises:
        FuzzError: an answer was no 4xx, gave no reason or gave away a path; or the service ended.
    """
    with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
        registry = demo_registry(Path(name), 4096)
        registry.register(0)
        schema = registry.rows(1).schema
        with demo_service(registry) as (url, config):
            drawn = MalformedRequests(schema, config.limits)
            send(url, drawn.draw(min(requests, _WARM_UP), seed + 1))
            before = resident_bytes(url)
            started = time.perf_counter()
            result = send(url, drawn.draw(requests, seed))
            seconds = time.perf_counter() - started
            after = resident_bytes(url)
    if result.wrong:
        raise FuzzError(f"{len(result.wrong)} wrong answers: " + "; ".join(result.wrong[:_SHOWN]))
    return {
        "requests": requests,
        "seconds": seconds,
        "statuses": {str(status): n for status, n in sorted(result.statuses.items())},
        "codes": dict(result.codes.most_common()),
        "rss_growth_ratio": after / before,
        "rss_mb_before": before / 2**20,
        "rss_mb_after": after / 2**20,
    }


def send(url: str, requests: Iterable[Malformed], clients: int = 8) -> FuzzResult:
    """Sends them over some connections and judges the answers; the service must be alive after."""
    return asyncio.run(_send(url, requests, clients))


def resident_bytes(url: str) -> float:
    """Memory of the replicas together, as /metrics says."""
    return asyncio.run(_sum(url, _RSS))


def cpu_seconds(url: str) -> float:
    """Processor time of the replicas together so far, as /metrics says."""
    return asyncio.run(_sum(url, _CPU))


async def _send(url: str, requests: Iterable[Malformed], clients: int) -> FuzzResult:
    result = FuzzResult()
    source = iter(requests)
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            for request in source:
                await _judge(session, url, request, result)

        await asyncio.gather(*(client() for _ in range(clients)))
        async with session.get(f"{url}/health") as answer:
            if answer.status != 200:
                result.wrong.append(f"/health says {answer.status} afterwards")
    return result


async def _judge(
    session: aiohttp.ClientSession, url: str, request: Malformed, result: FuzzResult
) -> None:
    try:
        async with session.request(
            request.method, url + request.path, data=request.body, headers=request.headers
        ) as answer:
            status, text = answer.status, await answer.text()
    except aiohttp.ClientError as error:
        if request.fault == "large body":
            # The service answers and closes while the client is still sending.
            result.codes["closed while sending"] += 1
            return
        status, text = 0, f"no answer: {type(error).__name__}"
    result.statuses[status] += 1
    fault = _fault(request, status, text, result)
    if fault:
        result.wrong.append(f"{request.fault}: {fault}: {request.body[:120]!r} -> {text[:200]}")


def _fault(request: Malformed, status: int, text: str, result: FuzzResult) -> str | None:
    if not 400 <= status < 500:
        return f"status {status}"
    if _LEAKS.search(text):
        return "leak"
    try:
        error = json.loads(text)["error"]
        reason, code = str(error["message"]), str(error["code"])
    except (ValueError, KeyError, TypeError):
        return "no reason as JSON"
    result.codes[code] += 1
    if not reason:
        return "empty reason"
    if request.named is not None and error.get("field") != request.named[:100]:
        return f"names {error.get('field')!r}, not {request.named[:100]!r}"
    return None


async def _sum(url: str, samples: re.Pattern[bytes]) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        return sum(map(float, samples.findall(await answer.read())))
