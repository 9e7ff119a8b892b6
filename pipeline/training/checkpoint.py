"""Sharded checkpoints of the weights: written whole, made visible by one atomic rename."""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message names the folder and the remedy."""


class BestWeights:
    """Keeps the weights of the best evaluation so far under one folder, newest first to succeed.

    Every rank writes its own shards into the shared folder; the previous checkpoint goes only
    after the new one is complete.

    Args:
        folder: shared by all workers.
        plan: the sharding plan, left beside the weights.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._plan = plan
        self.path: Path | None = None

    def save(self, model: nn.Module, step: int) -> Path:
        """Saves the model's weights as ``step-N``. Every rank must call it."""
        partial = self._folder / f"step-{step}.partial"
        final = self._folder / f"step-{step}"
        partial.mkdir(parents=True, exist_ok=True)
        with _quiet():
            dcp.save({"model": model.state_dict()}, checkpoint_id=str(partial))
        if dist.get_rank() == 0:
            if self._plan is not None:
                (partial / "sharding_plan.json").write_text(json.dumps(self._plan, indent=1) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            if self.path is not None and self.path != final:
                shutil.rmtree(self.path, ignore_errors=True)
        dist.barrier()
        self.path = final
        return final

    def restore(self, model: nn.Module) -> None:
        """Loads the kept weights back into the (sharded) model. Every rank must call it."""
        assert self.path is not None, "nothing was saved"
        state: dict[str, Any] = {"model": model.state_dict()}
        with _quiet():
            dcp.load(state, checkpoint_id=str(self.path))
        model.load_state_dict(state["model"])


def load_unsharded(model: nn.Module, path: str | Path) -> None:
    """Loads a sharded checkpoint into an unsharded model, in one process without a group.

    Raises:
        CheckpointError: no complete checkpoint there, or one of another model.
    """
    if not (Path(path) / ".metadata").is_file():
        raise CheckpointError(
            f"{path}: no complete checkpoint; is storage.path a folder that every node shares?"
        )
    state: dict[str, Any] = {"model": model.state_dict()}
    with _quiet():
        dcp.load(state, checkpoint_id=str(path), no_dist=True)
    model.load_state_dict(state["model"])


@contextmanager
def _quiet() -> Iterator[None]:
    # torch announces on every call that saving in one process works as it is asked to.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
