"""The model step on a GPU, beside what the GPU can do, and its forms beside one another.

The peaks are products of large matrices in the step's precision and a copy that no cache holds,
measured in the same rounds. The forms are of the dense part alone, forward and backward.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ple
from pipeline.benchmark.data_sets import write_benchmark_dataset
from pipeline.benchmark.model import benchmark_experiment, trainer_here
from pipeline.benchmark.pairs import Ratio, interleaved
from pipeline.benchmark.step import least_bytes
from pipeline.config import ConfigError
from pipeline.training.trainer import Trainer

# A batch of 4096 rows does not fill a GPU.
BATCH_SIZE = 65_536
_TABLE_ROWS, _BATCHES, _STEPS = 100_000, 8, 20
# Side of the square matrices of the peak, and bytes of the copy.
_SIDE, _COPY_BYTES = 8192, 1 << 30
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_cuda_step(pairs: int, batch_size: int) -> dict[str, Any]:
    """Examples per second, shares of both peaks and the idle share in fp32 and bf16; ratios of
    bf16, batched experts and the compiled dense part to without.

    Args:
        pairs: interleaved rounds.
        batch_size: rows of a batch.

    Raises:
        ConfigError: PyTorch finds no GPU here.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: PyTorch finds no GPU on this machine; leave the option out, or install "
            "requirements/cuda.lock where there is one"
        )
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
        write_benchmark_dataset(Path(name), _BATCHES * batch_size, 0)
        experiment = benchmark_experiment(Path(name), _TABLE_ROWS, batch_size=batch_size)
        with trainer_here(experiment, device) as trainer:
            summary = {"pairs": pairs, "batch_size": batch_size, "device": "cuda"}
            return summary | step_figures(trainer, pairs) | form_figures(trainer, pairs)


def step_figures(trainer: Trainer, pairs: int, side: int = _SIDE) -> dict[str, Any]:
    """Of whole steps on batches that lie on the device.

    Args:
        trainer: on any device.
        pairs: interleaved rounds.
        side: of the matrices of the peak.
    """
    device = trainer.context.device
    batches = [batch.to(device) for batch in trainer.loaders["train"].epoch(0)]
    rows = batches[0].rows
    endless, steps = itertools.cycle(batches), itertools.count()

    def train(kind: str) -> None:
        trainer.model.module.training_dtype = KINDS[kind]
        for _ in range(_STEPS):
            trainer.train_step(next(endless), next(steps))

    def seconds_per_step(kind: str) -> float:
        return _seconds(partial(train, kind), device) / _STEPS

    subjects: dict[str, Callable[[], float]] = {"copy": partial(_copy_rate, device)}
    for kind, dtype in KINDS.items():
        subjects[f"product_{kind}"] = partial(_product_rate, device, dtype, side)
        subjects[f"step_{kind}"] = partial(seconds_per_step, kind)
    for kind in KINDS:
        train(kind)
    measured = interleaved(subjects, pairs)
    flops = 3 * ple.cost(trainer.model.module).flops_per_row * rows
    moved = least_bytes(trainer.model.module, rows)
    found: dict[str, Any] = {}
    for kind in KINDS:
        seconds = measured[f"step_{kind}"]
        peaks = zip(measured[f"product_{kind}"], measured["copy"], seconds, strict=True)
        shares = [(flops / rate / step, moved / copied / step) for rate, copied, step in peaks]
        found[f"examples_per_second_{kind}"] = rows / statistics.median(seconds)
        found[f"matmul_share_{kind}"] = Ratio.of([share for share, _ in shares]).median
        found[f"memory_share_{kind}"] = Ratio.of([share for _, share in shares]).median
        if device.type == "cuda":
            found[f"idle_share_{kind}"] = _idle_share(partial(train, kind))
    pairs_of = zip(measured["step_fp32"], measured["step_bf16"], strict=True)
    found["ratio_bf16"] = Ratio.of([full / half for full, half in pairs_of]).median
    return found


def form_figures(trainer: Trainer, pairs: int, compiled: bool = True) -> dict[str, Any]:
    """Speed of batched experts over looped ones, and of the compiled dense part over the plain one.

    Args:
        trainer: on any device.
        pairs: interleaved rounds.
        compiled: whether to compile; it takes a while and, on a CPU, a C++ compiler.
    """
    device, extraction = trainer.context.device, trainer.model.module.extraction
    batch = next(trainer.loaders["train"].epoch(0)).to(device)
    with torch.no_grad():
        (x_BD,) = trainer.model.module.features(batch.ids, batch.weighted_ids, batch.dense_BN)
    x_BD = x_BD.detach().requires_grad_()

    def both_ways(forward: Callable[..., Any], **options: Any) -> None:
        streams, _ = forward([x_BD], **options)
        _ones_backward(streams)

    forms = {"looped": partial(both_ways, extraction, looped=True)}
    forms["batched"] = partial(both_ways, extraction, looped=False)
    if compiled:
        forms["compiled"] = partial(both_ways, torch.compile(extraction), looped=False)
    for form in forms.values():
        form()
    timed = {name: partial(_seconds, form, device) for name, form in forms.items()}
    seconds = interleaved(timed, pairs)
    found = {"ratio_batched": _ratio(seconds["looped"], seconds["batched"])}
    if compiled:
        found["ratio_compiled"] = _ratio(seconds["batched"], seconds["compiled"])
    return found


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _idle_share(run: Callable[[], None]) -> float:
    """Share of the time from the first kernel to the last in which none runs."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
    ]
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    return 1.0 - covered(spans) / (last - first)


def _ones_backward(streams: list[Tensor]) -> None:
    torch.autograd.backward(streams, [torch.ones_like(stream) for stream in streams])


def _product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    left = torch.randn(side, side, device=device, dtype=dtype)
    torch.mm(left, left)
    return 2.0 * side**3 / _seconds(lambda: torch.mm(left, left), device)


def _copy_rate(device: torch.device) -> float:
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = source.clone()
    return 2 * _COPY_BYTES / _seconds(lambda: target.copy_(source), device)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Until the device is through."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def _ratio(others: list[float], own: list[float]) -> float:
    return Ratio.of([other / mine for other, mine in zip(others, own, strict=True)]).median
