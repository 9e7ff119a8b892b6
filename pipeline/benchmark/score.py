"""Batch scoring against the model's own forward pass on ready batches, on the same cores.

Both run two processes of one thread: the actors of a scoring job, and processes that do nothing but
call the served model on encoded rows that lie ready. They are measured in turns.
"""

import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.benchmark.pairs import Ratio, interleaved
from pipeline.benchmark.served_model import DemoRegistry, bare_model, demo_registry
from pipeline.cluster.session import ray_cluster
from pipeline.config.schema import RayConfig
from pipeline.config.scoring import ScoringConfig
from pipeline.console import RunConsole
from pipeline.data.remote import RetryPolicy
from pipeline.scoring.actors import ItemResult, score_on_ray
from pipeline.scoring.score import ScoringJob, score

_PROCESSES = 2
_READY_ROWS = 8192
_FORWARD_SECONDS = 4.0
_PIECES = 8
_KEYS = ["user_id", "item_id"]


@dataclass(frozen=True)
class _Rate:
    """Rows by wall time of all processes together, and by their processor time."""

    rows_per_second: float
    rows_per_cpu_second: float


def measure_score(pairs: int, rows: int) -> dict[str, Any]:
    """``score_share_of_forward``: rows per second of scoring over those of the forward pass.

    Steady state: from an actor's first piece of work to its last. ``score_share_with_start`` is of
    the whole job, Ray's start and the loading of the model included. ``cpu_share_of_forward``
    compares rows per second of processor time, which does not wait where others use the machine.

    Args:
        pairs: rounds of both.
        rows: of the input, a generated click log.
    """
    with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
        folder = Path(name)
        registry = demo_registry(folder, rows)
        version = registry.register(0)
        config = ScoringConfig(keep=_KEYS, rows_per_file=rows // _PIECES, actors=_PROCESSES)
        job = ScoringJob(
            registry.tracking_uri,
            version.uri,
            str(folder / "data" / "train"),
            str(folder / "scores"),
            config,
            RetryPolicy(),
            "overwrite",
        )
        forwards: list[_Rate] = []
        scorings: list[_Rate] = []

        def forward() -> float:
            forwards.append(_forward(registry))
            return forwards[-1].rows_per_second

        def scoring() -> float:
            done = score(job, RayConfig(), RunConsole(), score_on_ray)
            scorings.append(_steady(done.results))
            return scorings[-1].rows_per_second

        with ray_cluster(RayConfig()):
            measured = interleaved({"forward": forward, "scoring": scoring}, pairs)
        whole = score(job, RayConfig(), RunConsole())
    share = _ratio(measured["scoring"], measured["forward"])
    cpu = _ratio(
        [rate.rows_per_cpu_second for rate in scorings[1:]],
        [rate.rows_per_cpu_second for rate in forwards[1:]],
    )
    forward_rows = sorted(measured["forward"])[pairs // 2]
    return {
        "pairs": pairs,
        "rows": rows,
        "score_share_of_forward": share.median,
        "score_share_of_forward_spread": [share.low, share.high],
        "cpu_share_of_forward": cpu.median,
        "cpu_share_of_forward_spread": [cpu.low, cpu.high],
        "score_share_with_start": rows / whole.seconds_in_all / forward_rows,
        "seconds_with_start": whole.seconds_in_all,
        "rows_per_second": sorted(measured["scoring"])[pairs // 2],
        "forward_rows_per_second": forward_rows,
    }


def _ratio(values: Sequence[float], bases: Sequence[float]) -> Ratio:
    return Ratio.of([value / base for value, base in zip(values, bases, strict=True)])


def _steady(results: Sequence[ItemResult]) -> _Rate:
    """Every actor's rows over its own time, summed."""
    by_actor: dict[str, list[ItemResult]] = defaultdict(list)
    for result in results:
        by_actor[result.worker].append(result)
    rate = 0.0
    for own in by_actor.values():
        seconds = max(r.ended for r in own) - min(r.began for r in own)
        rate += sum(r.record.item.rows for r in own) / seconds
    rows = sum(result.record.item.rows for result in results)
    return _Rate(rate, rows / sum(result.cpu_seconds for result in results))


def _forward(registry: DemoRegistry) -> _Rate:
    """The model alone, in fresh processes at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(_PROCESSES), context.SimpleQueue()
    workers = [
        context.Process(target=_call_model, args=(registry, barrier, rates))
        for _ in range(_PROCESSES)
    ]
    for worker in workers:
        worker.start()
    found = [rates.get() for _ in workers]
    for worker in workers:
        worker.join()
    rows = sum(rate[0] for rate in found)
    return _Rate(sum(rate[0] / rate[1] for rate in found), rows / sum(rate[2] for rate in found))


def _call_model(registry: DemoRegistry, barrier: Any, rates: Any) -> None:
    """(rows, seconds, processor seconds) of calls that run for a while."""
    torch.set_num_threads(1)
    call = bare_model(registry, _READY_ROWS)
    call()
    barrier.wait()
    calls, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < _FORWARD_SECONDS:
        call()
        calls += 1
    seconds = time.perf_counter() - started
    rates.put((calls * _READY_ROWS, seconds, time.process_time() - cpu))
