"""Ids that travel ahead of the forward pass that needs them."""

from collections.abc import Mapping
from typing import Any

import torch
from torchrec.distributed.types import Awaitable, ShardedModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class StartedIds:
    """A batch's ids on their way to the workers that hold their rows.

    Their exchange is that of TorchRec's sharded collections, move by move, so that other work fits
    in between: making this announces how many ids go where, :meth:`send` sends them,
    :meth:`receive` waits until they have come. Every rank must make the same moves in the same
    order among its other collective calls. A move that was left out is made up for by the next.

    Args:
        given: for each name a sharded collection and the ids for it.
        stream: a CUDA stream for the exchange, beside the one that computes; None on CPU.
    """

    def __init__(
        self,
        given: Mapping[str, tuple[ShardedModule[Any, Any, Any, Any], KeyedJaggedTensor]],
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._stream = stream
        self._sent = self._received = False
        self._collections = {name: collection for name, (collection, _) in given.items()}
        self._contexts = {name: c.create_context() for name, c in self._collections.items()}
        # What each stands at: an awaitable of an awaitable of the ids, then one less.
        self._ids: dict[str, Any] = {}
        with torch.cuda.stream(stream):
            for name, (collection, ids) in given.items():
                self._ids[name] = collection.input_dist(self._contexts[name], ids)

    def send(self) -> None:
        """Waits for the announcements of all workers and sends the ids."""
        if not self._sent:
            self._sent = True
            self._advance()

    def receive(self) -> None:
        """Waits for the ids of all workers; on CUDA only the exchange's stream does."""
        self.send()
        if not self._received:
            self._received = True
            self._advance()
            if self._stream is not None:
                self._arrived = self._stream.record_event()

    def look_up(self, name: str) -> Awaitable[Any]:
        """What the named collection gives for its ids; call it once for each."""
        self.receive()
        ids, context = self._ids.pop(name), self._contexts.pop(name)
        if self._stream is not None:
            here = torch.cuda.current_stream()
            here.wait_event(self._arrived)
            ids.record_stream(here)
            context.record_stream(here)
        return self._collections[name].compute_and_output_dist(context, ids)

    def _advance(self) -> None:
        with torch.cuda.stream(self._stream):
            self._ids = {name: awaitable.wait() for name, awaitable in self._ids.items()}
