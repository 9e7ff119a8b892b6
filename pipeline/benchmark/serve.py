"""The online service against the bare model: rows per second and latency, over real HTTP.

The bare model is ``model(batch)`` on encoded rows that lie ready, on the thread count of the
service's model. Service and model are measured in turns, the clients are a process of their own.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.benchmark.fuzz import cpu_seconds
from pipeline.benchmark.load_generator import Load, run_load
from pipeline.benchmark.pairs import Ratio, interleaved
from pipeline.benchmark.served_model import DemoRegistry, bare_model, demo_registry
from pipeline.benchmark.service import demo_service
from pipeline.registry.client import download_version

ROWS = (1, 64, 1024)
# Enough that a request waits whenever the model is free; more only adds waiting.
_CLIENTS = {1: 16, 64: 6, 1024: 4}
_BARE_SECONDS = 1.0

_COLD_LOAD = """
import json, sys, time
import psutil
started = time.perf_counter()
empty = psutil.Process().memory_info().rss
import torch
torch.set_num_threads(1)
of_torch = time.perf_counter() - started
from pipeline.registry.scorer import RowScorer
imported = time.perf_counter() - started
of_imports = psutil.Process().memory_info().rss
scorer = RowScorer.load(sys.argv[1])
loaded = time.perf_counter() - started
import pyarrow.parquet as pq
scorer.score_table(pq.read_table(sys.argv[2]))
scored = time.perf_counter() - started
print(json.dumps({
    "torch": of_torch, "imported": imported, "loaded": loaded, "scored": scored,
    "rss_empty": empty, "rss_imported": of_imports, "rss": psutil.Process().memory_info().rss,
}))
"""


def measure_serve(pairs: int, seconds: float) -> dict[str, Any]:
    """``share_of_model_N`` for N rows a request, latencies, and a cold load in a fresh process.

    ``share_of_model_N_arrow``: with bodies and answers as Arrow streams instead of JSON.

    ``cpu_share_of_model_N``: processor seconds of a model call over those that a replica spends on
    a request, everything but the clients.

    Args:
        pairs: rounds of bare model and service.
        seconds: of load in every round and size.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
            folder = Path(name)
            registry = demo_registry(folder)
            version = registry.register(0)
            summary: dict[str, Any] = {"pairs": pairs, "seconds": seconds}
            summary |= _cold_load(registry, version.uri, folder)
            bodies = _bodies(registry, folder)
            with demo_service(registry) as (url, _):
                for rows in ROWS:
                    found = _compare(registry, url, bodies[rows], rows, pairs, seconds)
                    summary |= {f"{name}_{rows}": value for name, value in found.items()}
                rows = ROWS[-1]
                found = _compare(registry, url, _arrow(registry, folder), rows, pairs, seconds)
                summary |= {f"{name}_{rows}_arrow": value for name, value in found.items()}
            return summary
    finally:
        torch.set_num_threads(before)


def _compare(
    registry: DemoRegistry, url: str, body: Path, rows: int, pairs: int, seconds: float
) -> dict[str, Any]:
    call = bare_model(registry, rows)
    busy: list[Load] = []
    alone: list[Load] = []
    bare_cpu: list[float] = []
    busy_cpu: list[float] = []

    def bare() -> float:
        """Seconds per call."""
        calls, started, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < _BARE_SECONDS:
            call()
            calls += 1
        bare_cpu.append((time.process_time() - cpu) / calls)
        return (time.perf_counter() - started) / calls

    def loaded() -> float:
        before = cpu_seconds(url)
        rate = service(_CLIENTS[rows], busy)
        busy_cpu.append((cpu_seconds(url) - before) / busy[-1].requests)
        return rate

    def service(clients: int, loads: list[Load]) -> float:
        load = run_load(f"{url}/score", body, clients, seconds)
        assert set(load.statuses) == {"200"}, load.statuses
        loads.append(load)
        return load.per_second

    measured = interleaved(
        {
            "bare": bare,
            "busy": loaded,
            "alone": lambda: service(1, alone),
        },
        pairs,
    )
    share = Ratio.of([b * r for b, r in zip(measured["bare"], measured["busy"], strict=True)])
    # What is left of the share when others use the machine too: processor time does not wait.
    cpu = Ratio.of([b / c for b, c in zip(bare_cpu[1:], busy_cpu[1:], strict=True)])
    waits = [load.p50_ms / 1000 for load in alone[1:]]
    latency = Ratio.of([wait / b for wait, b in zip(waits, measured["bare"], strict=True)])
    middle = sorted(alone[1:], key=lambda load: load.p50_ms)[len(alone[1:]) // 2]
    bare_seconds = sorted(measured["bare"])[pairs // 2]
    return {
        "share_of_model": share.median,
        "share_of_model_spread": [share.low, share.high],
        "cpu_share_of_model": cpu.median,
        "latency_ratio": latency.median,
        "p50_ms": middle.p50_ms,
        "p99_ms": middle.p99_ms,
        "model_ms": bare_seconds * 1000,
        "rows_per_second": rows * sorted(measured["busy"])[pairs // 2],
    }


def _cold_load(registry: DemoRegistry, uri: str, folder: Path) -> dict[str, Any]:
    """Import, load and first scores of the model in a fresh process; nothing of Ray or MLflow."""
    path = download_version(registry.tracking_uri, uri, folder / "cold")
    pq.write_table(registry.rows(1), folder / "row.parquet")
    command = [sys.executable, "-c", _COLD_LOAD, path, str(folder / "row.parquet")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    found = json.loads(done.stdout)
    return {
        "cold_seconds": found["scored"],
        "cold_import_share": found["imported"] / found["scored"],
        "cold_torch_share": found["torch"] / found["scored"],
        "cold_load_seconds": found["loaded"] - found["imported"],
        "cold_rss_mb": found["rss"] / 2**20,
        "cold_import_rss_share": (found["rss_imported"] - found["rss_empty"]) / found["rss"],
    }


def _bodies(registry: DemoRegistry, folder: Path) -> dict[int, Path]:
    """Requests by rows, as files for the clients."""
    bodies = {}
    for rows in ROWS:
        bodies[rows] = folder / f"body-{rows}.json"
        bodies[rows].write_text(json.dumps({"rows": registry.rows(rows).to_pylist()}))
    return bodies


def _arrow(registry: DemoRegistry, folder: Path) -> Path:
    """The largest request as an Arrow stream."""
    rows = registry.rows(ROWS[-1])
    body = folder / f"body-{rows.num_rows}.arrow"
    with pa.ipc.new_stream(body, rows.schema) as writer:
        writer.write_table(rows)
    return body
