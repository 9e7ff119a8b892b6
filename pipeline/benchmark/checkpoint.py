"""What a checkpoint costs the loop: seconds it stalls for, and memory, against a plain copy.

The state is one table and its row-wise optimizer state; a plain copy is ``Tensor.copy_`` of the
same tensors, the least that can be done to have them as they were while training goes on. The first
save allocates what it copies into, and is compared with a first ``Tensor.clone``.
"""

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.benchmark.pairs import Ratio
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.config.checkpoint import CheckpointConfig

_WIDTH = 64


def measure_checkpoint(pairs: int, gigabytes: float, folder: Path | None) -> dict[str, Any]:
    """``stall_over_copy`` (median over pairs), ``peak_extra_copies`` (of the state's size).

    Args:
        pairs: saves, each after a plain copy.
        gigabytes: size of the state.
        folder: where checkpoints go; None = a temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="ple-benchmark-", dir=folder) as name:
        dist.init_process_group(
            "gloo", init_method=f"file://{name}/rendezvous", rank=0, world_size=1
        )
        try:
            return _measure(pairs, int(gigabytes * 1e9), f"{name}/checkpoints")
        finally:
            dist.destroy_process_group()


def _measure(pairs: int, size: int, location: str) -> dict[str, Any]:
    state = _TableState(size // (4 * _WIDTH + 4))
    checkpoints = Checkpoints(location, CheckpointConfig(keep_last=1), {}, plan=None)
    with _PeakMemory() as memory:
        first_stall, _ = _save(checkpoints, state, 0)
        _save(checkpoints, state, 1)
    started = time.perf_counter()
    copies = [tensor.clone() for tensor in state.all_tensors]
    first_copy = time.perf_counter() - started
    ratios, seconds = [], []
    for step in range(2, pairs + 2):
        started = time.perf_counter()
        for copy, tensor in zip(copies, state.all_tensors, strict=True):
            copy.copy_(tensor)
        copied = time.perf_counter() - started
        stall, written = _save(checkpoints, state, step)
        ratios.append(stall / copied)
        seconds.append((copied, stall, written))
    checkpoints.close()
    ratio = Ratio.of(ratios)
    copied, stall, written = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "pairs": pairs,
        "cores": len(os.sched_getaffinity(0)),
        "state_bytes": state.size,
        "copy_seconds": copied,
        "stall_seconds": stall,
        "save_seconds": written,
        "stall_over_copy": ratio.median,
        "stall_over_copy_spread": [ratio.low, ratio.high],
        "first_stall_over_first_copy": first_stall / first_copy,
        "peak_extra_copies": memory.extra / state.size,
    }


def _save(checkpoints: Checkpoints, state: "_TableState", step: int) -> tuple[float, float]:
    """Seconds until training may go on, and until the checkpoint is committed."""
    started = time.perf_counter()
    checkpoints.save(state, step=step)
    stall = time.perf_counter() - started
    checkpoints.wait()
    return stall, time.perf_counter() - started


class _TableState:
    """A training state of one table, for ``Checkpoints``."""

    def __init__(self, rows: int) -> None:
        self._table = torch.ones(rows, _WIDTH)
        self._momentum = torch.ones(rows)
        self.all_tensors: list[Tensor] = [self._table, self._momentum]
        self.size = sum(tensor.nbytes for tensor in self.all_tensors)

    def tensors(self) -> dict[str, Any]:
        return {"model": {"table": self._table}, "fused_optimizer": {"table": self._momentum}}

    def load_tensors(self, tree: dict[str, Any]) -> None: ...

    def shared(self) -> dict[str, Any]:
        return {}

    def own(self) -> dict[str, Any]:
        return {}

    def load_plain(self, shared: dict[str, Any], own: list[dict[str, Any]]) -> None: ...


class _PeakMemory:
    """Most memory this process held above what it held before, by a look every few milliseconds.

    Attributes:
        extra: bytes.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.extra = 0

    def __enter__(self) -> "_PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.extra = max(self.extra, self._process.memory_info().rss - self._before)
