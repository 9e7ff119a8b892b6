"""Which worker this is, and the device and threads it may use."""

from dataclasses import dataclass

import torch

from pipeline.training.memory import keep_freed_memory


@dataclass(frozen=True)
class WorkerContext:
    """One worker of a process group that already stands.

    Attributes:
        rank, world_size: place in the whole group.
        local_world_size: workers on this node.
        device: where this worker computes.
        threads: intra-op threads it may use.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    threads: int

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    def prepare(self, seed: int) -> None:
        """Sets memory, threads, the device and the seed from which dense weights are drawn."""
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        torch.manual_seed(seed)

    def seed_dropout(self, seed: int) -> None:
        """Gives every worker masks of its own; call it once the weights are drawn."""
        torch.manual_seed((seed + 1) * 1_000_003 + self.rank)
