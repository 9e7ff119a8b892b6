"""A training state made of a few plain tensors, and a process group of this process alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.config.checkpoint import CheckpointConfig

IDENTITY = {"format": 1, "dataset": "d1", "model": {"levels": 2, "width": 64}}


class SmallState:
    """Two tensors of a model, a moment each, a counter, and trees that tell the step."""

    def __init__(self, step: int, rows: int = 50) -> None:
        generator = torch.Generator().manual_seed(step)
        self.model = {
            "tower.weight": torch.randn(7, 5, generator=generator),
            "tables.user": torch.randn(rows, 4, generator=generator),
        }
        self.moments = {
            name: torch.randn(v.shape, generator=generator) for name, v in self.model.items()
        }
        self.steps = torch.tensor(step, dtype=torch.int64)
        self.plain: dict[str, Any] = {"step": step, "rng": np.arange(step, step + 5)}
        self.mine: dict[str, Any] = {"rank": dist.get_rank(), "sum": step / 3}

    def tensors(self) -> dict[str, Any]:
        return {"model": self.model, "dense_optimizer": self.moments, "counts": {"n": self.steps}}

    def load_tensors(self, tree: dict[str, Any]) -> None:
        assert tree["model"]["tower.weight"] is self.model["tower.weight"]

    def shared(self) -> dict[str, Any]:
        return self.plain

    def own(self) -> dict[str, Any]:
        return self.mine

    def load_plain(self, shared: dict[str, Any], own: list[dict[str, Any]]) -> None:
        self.plain, self.owns = shared, own

    def flat(self) -> dict[str, Tensor]:
        """All numbers of the state, copied."""
        named = {"steps": self.steps, "rng": torch.as_tensor(self.plain["rng"])}
        named["step"] = torch.tensor(self.plain["step"])
        named |= {f"model.{name}": value for name, value in self.model.items()}
        named |= {f"moment.{name}": value for name, value in self.moments.items()}
        return {name: value.clone() for name, value in named.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


@contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    """A gloo group in which this process is alone."""
    folder.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def checkpoints_in(location: Path | str, **options: Any) -> Checkpoints:
    """Checkpoints of a run of IDENTITY."""
    return Checkpoints(str(location), CheckpointConfig(**options), IDENTITY, plan=None)
