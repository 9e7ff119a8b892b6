"""Everything that a training needs to go on as if it had not been interrupted."""

from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)

from pipeline.training.journal import Journal
from pipeline.training.parts import TrainingParts
from ple.managed_ids import ManagedIds


class TrainingState:
    """The state of one worker between two steps, for ``pipeline.checkpoint.Checkpoints``.

    Learning rates are functions of the step and are in no checkpoint. Every rank must make the
    same calls.

    Args:
        parts: what is trained, and how.
        journal: what was done.
    """

    def __init__(self, parts: TrainingParts, journal: Journal) -> None:
        self._parts, self._journal = parts, journal
        model = parts.model
        self._maps = {n: m for n, m in model.module.named_modules() if isinstance(m, ManagedIds)}
        self._tables = [
            module
            for module in model.modules()
            if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen)
        ]

    def tensors(self) -> dict[str, Any]:
        """Weights and what the optimizers keep of them, sharded as they are trained."""
        return {"model": self._parts.model.state_dict(), **self._parts.optimizers.tensors()}

    def load_tensors(self, tree: dict[str, Any]) -> None:
        """After :meth:`tensors` was filled in place."""
        self._parts.model.load_state_dict(tree["model"])
        self._parts.optimizers.load_tensors(tree)

    def shared(self) -> dict[str, Any]:
        """What is the same on all workers."""
        return {
            "journal": self._journal.shared(),
            "cursor": self._parts.loaders["train"].state_dict(),
            "best": self._parts.best_evaluation.state_dict(),
            "optimizers": self._parts.optimizers.counts(),
            "table_steps": [int(tables.iter) for tables in self._tables][:1],
        }

    def own(self) -> dict[str, Any]:
        """What is this worker's alone."""
        cuda = self._parts.context.device.type == "cuda"
        return {
            "journal": self._journal.own(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self._parts.context.device) if cuda else None,
            "balance": self._parts.joint_loss.state_dict(),
            "losses": self._parts.joint_loss.own_state(),
            "books": {split: loader.books() for split, loader in self._parts.loaders.items()},
            "maps": {name: map_.collected() for name, map_ in self._maps.items()},
            "seconds": dict(self._parts.clock.seconds),
        }

    def load_plain(self, shared: dict[str, Any], own: list[dict[str, Any]]) -> None:
        """Restores what :meth:`shared` and :meth:`own` gave.

        With as many workers as saved each goes on with its own part. With another number the chief
        goes on with the sums of all, and dropout is seeded anew.
        """
        rank = self._parts.context.rank
        same = len(own) == self._parts.context.world_size
        mine = [own[rank]] if same else own if rank == 0 else []
        first = own[rank] if same else own[0]
        rows = sum(part["journal"]["rows_trained"] for part in mine)
        self._journal.load(shared["journal"], {**first["journal"], "rows_trained": rows})
        self._parts.loaders["train"].load_state_dict(shared["cursor"])
        for split, loader in self._parts.loaders.items():
            loader.load_books([part["books"][split] for part in mine])
        self._parts.best_evaluation.load_state_dict(shared["best"])
        self._parts.optimizers.load_counts(shared["optimizers"])
        if self._journal.step:
            self._parts.optimizers.set_rates(self._journal.step - 1)
        for tables in self._tables if shared["table_steps"] else ():
            tables.set_optimizer_step(shared["table_steps"][0])
        self._parts.joint_loss.load_state_dict(own[0]["balance"])
        self._parts.joint_loss.load_own_states([part["losses"] for part in own])
        for name, map_ in self._maps.items():
            map_.load_collected([part["maps"][name] for part in own])
        for phase, seconds in first["seconds"].items():
            self._parts.clock.add(phase, seconds)
        self._load_random(first if same else None)

    def _load_random(self, part: dict[str, Any] | None) -> None:
        if part is None:
            self._parts.context.seed_dropout(self._parts.experiment.train.seed + self._journal.step)
            return
        torch.set_rng_state(part["random"])
        if part["cuda_random"] is not None and self._parts.context.device.type == "cuda":
            torch.cuda.set_rng_state(part["cuda_random"], self._parts.context.device)
