"""What this machine can do at most, measured on the spot: matrix products and memory copies."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ple.products import onednn

# Products of the size a wide tower runs (rows × width × width); the best of them is the ceiling.
_SHAPES = ((4096, 1024, 1024), (4096, 512, 512), (2048, 2048, 2048))
_COPY_BYTES = 256 << 20


def matmul_rate(seconds: float = 0.2) -> float:
    """Floating-point operations per second of the fastest of a few square-ish float32 products,
    by the faster of PyTorch's libraries.

    Uses the intra-op threads in force. Each shape runs for about ``seconds``; the median of its
    calls counts.
    """
    ways = (_by_mm, _by_onednn) if torch.backends.mkldnn.is_available() else (_by_mm,)
    return max(_product_rate(shape, seconds, ways) for shape in _SHAPES)


def torch_mm_rate(seconds: float = 0.2) -> float:
    """The same of ``torch.mm``, which most code multiplies with."""
    return max(_product_rate(shape, seconds, (_by_mm,)) for shape in _SHAPES)


def memory_rate(repetitions: int = 3) -> float:
    """Bytes per second read and written by a copy that no cache holds."""
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return 2 * _COPY_BYTES / statistics.median(times)


def _product_rate(
    shape: tuple[int, int, int], seconds: float, ways: Sequence[Callable[..., Any]]
) -> float:
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    fastest = min(_median_seconds(partial(way, left, right), seconds / len(ways)) for way in ways)
    return 2.0 * rows * inner * columns / fastest


def _by_mm(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right.T)


def _by_onednn(left: Tensor, right: Tensor) -> Tensor:
    return onednn(left, right, None)


def _median_seconds(run: Callable[[], Any], seconds: float) -> float:
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 3:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
