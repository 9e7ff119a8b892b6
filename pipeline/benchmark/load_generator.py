"""A client that keeps a service busy: a process of its own, run as a module.

python -m pipeline.benchmark.load_generator URL BODY_FILE --clients 8 --seconds 5

A body is JSON, or an Arrow stream where the file is called *.arrow; answers come in the same form.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa

from pipeline.serving.arrow_stream import MEDIA_TYPE as ARROW


@dataclass(frozen=True)
class Load:
    """What the service did with a load.

    Attributes:
        requests: answered ones.
        per_second: of them, from the first request to the last answer.
        p50_ms, p99_ms: latency as a client sees it.
        statuses: how many answers of each HTTP status; 0 = no answer.
        versions: how many answers of each model version.
    """

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    versions: dict[str, int]


def run_load(url: str, body: Path, clients: int, seconds: float) -> Load:
    """Runs the generator in another process and waits for it."""
    command = [sys.executable, "-m", __name__, url, str(body)]
    command += ["--clients", str(clients), "--seconds", str(seconds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    return Load(**json.loads(done.stdout))


async def generate(url: str, body: bytes, media: str, clients: int, seconds: float) -> Load:
    """`clients` connections, each with one request at a time, for some seconds."""
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    headers = {"content-type": media, "accept": media}
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() - started < seconds:
                sent = time.perf_counter()
                try:
                    async with session.post(url, data=body, headers=headers) as answer:
                        content = await answer.read()
                        statuses[str(answer.status)] += 1
                except aiohttp.ClientError:
                    statuses["0"] += 1
                    continue
                latencies.append(time.perf_counter() - sent)
                # The version stands before the scores, which are not worth reading here.
                versions[_version(content)] += 1

        await asyncio.gather(*(client() for _ in range(clients)))
        elapsed = time.perf_counter() - started
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000 if latencies else (0.0, 0.0)
    count = len(latencies)
    rate = count / elapsed
    return Load(count, rate, float(p50), float(p99), dict(statuses), dict(versions))


def _version(content: bytes) -> str:
    if content.startswith(b"\xff\xff\xff\xff"):
        return str(pa.ipc.open_stream(content).schema.metadata[b"version"].decode())
    _, found, rest = content[:400].partition(b'"version":"')
    return rest.split(b'"')[0].decode() if found else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("body", type=Path)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    media = ARROW if args.body.suffix == ".arrow" else "application/json"
    body = args.body.read_bytes()
    load = asyncio.run(generate(args.url, body, media, args.clients, args.seconds))
    print(json.dumps(asdict(load)))


if __name__ == "__main__":
    main()
