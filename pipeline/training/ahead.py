"""The next batch on its way while a step runs: to the device, its ids to where their rows are."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torchrec import KeyedJaggedTensor

import ple
from pipeline.data.batch import Batch
from pipeline.data.epoch_batches import EpochBatches
from pipeline.training.clock import PhaseClock
from ple.started_ids import StartedIds


class Ahead:
    """Hands out batches on the device, one step behind their exchange of ids.

    Before a step the workers announce to one another how many ids of the next batch go where,
    between its forward and backward pass they send them. On a GPU all of that, and the copy to the
    device, is in a stream of its own. One worker on a CPU has nothing to exchange: there batches
    are handed out as they come.

    A batch enters the reader's books when it is handed out, not when it is looked at.

    Args:
        embeddings: the sharded tables; None for a model without.
        device: of the steps.
        clock: told how long the loop waits for data and for the exchange.
    """

    def __init__(
        self, embeddings: ple.FeatureEmbeddings | None, device: torch.device, clock: PhaseClock
    ) -> None:
        self._embeddings, self._device, self._clock = embeddings, device, clock
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._looks_ahead = self._stream is not None or dist.get_world_size() > 1
        self._now: tuple[Batch, StartedIds | None] | None = None
        self._next: tuple[Batch, StartedIds | None] | None = None

    def over(self, batches: EpochBatches) -> Iterator[Batch]:
        """The batches of an epoch."""
        if not self._looks_ahead:
            for batch in self._clock.waiting("data wait", batches):
                yield batch.to(self._device)
            return
        self._next = self._start(batches)
        while self._next is not None:
            self._now, self._next = self._next, None
            next(batches)
            batch = self._arrived(*self._now)
            self._next = self._start(batches)
            yield batch
        self._now = None

    def ids_of(
        self, batch: Batch
    ) -> tuple[KeyedJaggedTensor | StartedIds | None, KeyedJaggedTensor | None]:
        """What the model takes for the ids of a batch, once: sent ahead if they were."""
        if self._now is not None:
            now, started = self._now
            same = now.ids is batch.ids and now.weighted_ids is batch.weighted_ids
            if same and started is not None:
                return started, None
        return batch.ids, batch.weighted_ids

    def send(self) -> None:
        """Sends the ids of the next batch. Every rank calls it at the same point of a step."""
        if self._next is not None and self._next[1] is not None:
            self._next[1].send()

    def _start(self, batches: EpochBatches) -> tuple[Batch, StartedIds | None] | None:
        with self._clock.phase("data wait"):
            batch = batches.peek()
        if batch is None:
            return None
        with self._clock.phase("communication"), torch.cuda.stream(self._stream):
            batch = batch.to(self._device, non_blocking=True)
            if self._embeddings is None:
                return batch, None
            return batch, self._embeddings.start(batch.ids, batch.weighted_ids, self._stream)

    def _arrived(self, batch: Batch, started: StartedIds | None) -> Batch:
        with self._clock.phase("communication"):
            if started is not None:
                started.receive()
        if self._stream is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._stream)
            batch.record_stream(here)
        return batch
