"""Splits a step into embedding, dense part and communication; traces steps on demand.

The split is taken by hooks: on modules in the forward pass, on tensors and autograd nodes in the
backward pass, each a few microseconds that read the clock. Work is attributed in the order in which
it is issued, so what overlaps with something else counts where it is waited for.

- embedding forward: lookups, then pooled embeddings put together into the feature vector;
- embedding backward: from the gradient of the feature vector on, the tables' update included;
- communication: ids and pooled embeddings on their way, gradients of pooled embeddings on their way
  back, and what of the all-reduce of dense gradients is left when the backward pass has ended;
- dense forward and backward: crosses, experts, gates, towers and losses.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import Awaitable

import ple
from pipeline.data.storage import open_store
from pipeline.training.clock import PhaseClock
from pipeline.training.errors import TrainingError

EMBEDDING_FORWARD = "embedding forward"
EMBEDDING_BACKWARD = "embedding backward"
DENSE_FORWARD = "dense forward"
DENSE_BACKWARD = "dense backward"
COMMUNICATION = "communication"
OPTIMIZER = "optimizer"

# Steps before the trace: allocations and buckets of the first are not those of all others.
_WARM_UP_STEPS = 5
_SHOWN_OPERATIONS = 40


def watch_step(ranker: ple.Ranker, clock: PhaseClock) -> None:
    """Puts the laps within forward and backward passes of a sharded ranker on the clock."""
    for module in ranker.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            _watch_lookups(module, clock)
    if isinstance(ranker.embeddings, ple.FeatureEmbeddings):
        ranker.embeddings.watch = _leaves_collection(clock)
    first = list(ranker.crosses) or [ranker.extraction]
    for module in first:
        module.register_forward_pre_hook(_enters_dense_part(clock))


def _watch_lookups(collection: ShardedEmbeddingBagCollection, clock: PhaseClock) -> None:
    def ids_have_come(*_: Any) -> None:
        clock.lap(COMMUNICATION)

    def looked_up(_module: nn.Module, _args: Any, pooled: Any) -> None:
        clock.lap(EMBEDDING_FORWARD)
        for pooled_BD in pooled if isinstance(pooled, list | tuple) else [pooled]:
            if pooled_BD.grad_fn is not None:
                pooled_BD.grad_fn.register_prehook(lambda _: clock.lap(COMMUNICATION))
                pooled_BD.grad_fn.register_hook(lambda *_: clock.lap(EMBEDDING_BACKWARD))

    for lookup in collection._lookups:
        lookup.register_forward_pre_hook(ids_have_come)
        lookup.register_forward_hook(looked_up)


def _leaves_collection(clock: PhaseClock) -> Callable[[Any], None]:
    def have_come(embeddings: Any) -> Any:
        clock.lap(COMMUNICATION)
        keyed = embeddings[0] if isinstance(embeddings, tuple) else embeddings
        values_BD = keyed.values()
        if values_BD.requires_grad:
            values_BD.register_hook(_lap(clock, EMBEDDING_BACKWARD))
        return embeddings

    def leaves(result: Any) -> None:
        clock.lap(COMMUNICATION)
        on_their_way = result[0] if isinstance(result, tuple) else result
        if isinstance(on_their_way, Awaitable):
            on_their_way.callbacks.append(have_come)
        else:
            have_come(on_their_way)

    return leaves


def _enters_dense_part(clock: PhaseClock) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def entered(_module: nn.Module, args: tuple[Any, ...]) -> None:
        clock.lap(EMBEDDING_FORWARD)
        features = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        for features_BD in features:
            if features_BD.requires_grad:
                features_BD.register_hook(_lap(clock, DENSE_BACKWARD))

    return entered


def _lap(clock: PhaseClock, name: str) -> Callable[[Tensor], None]:
    def lap(_gradient: Tensor) -> None:
        clock.lap(name)

    return lap


class StepTrace:
    """A trace of some steps by the torch profiler, for chrome://tracing or Perfetto.

    Call it after every step; it does nothing before and after those it traces.

    Args:
        folder: receives ``trace.json.gz`` and ``operations.txt`` once the last step is done.
        steps: steps to trace; 0 = none.
        device: of the model.
        total_steps: of the run.

    Raises:
        TrainingError: the run is shorter than that.
    """

    def __init__(
        self, folder: str | Path, steps: int, device: torch.device, total_steps: int
    ) -> None:
        if steps and _WARM_UP_STEPS + steps > total_steps:
            raise TrainingError(
                f"train.profile_steps: {steps} steps after {_WARM_UP_STEPS} to warm up, and the run"
                f" has {total_steps} in all; lower it or raise train.epochs"
            )
        self._folder, self._steps = folder, steps
        self._seen = 0
        self._profiler: torch.profiler.profile | None = None
        self._device = device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._profiler is not None:
            self._finish()

    def step(self) -> None:
        """A step is done."""
        if self._seen > _WARM_UP_STEPS + self._steps or not self._steps:
            return
        self._seen += 1
        if self._seen == _WARM_UP_STEPS:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profiler.start()
        elif self._seen == _WARM_UP_STEPS + self._steps and self._profiler is not None:
            self._finish()

    def _finish(self) -> None:
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        store = open_store(self._folder)
        with tempfile.TemporaryDirectory() as local:
            path = Path(local) / "trace.json.gz"
            profiler.export_chrome_trace(str(path))
            with store.open_output(path.name) as file:
                file.write(path.read_bytes())
        order = "cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=_SHOWN_OPERATIONS)
        store.write_text("operations.txt", table)
