"""The copy of the tensors that is written while training goes on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType


class Staging:
    """Host memory for one copy of this worker's tensors, kept from one save to the next."""

    def __init__(self) -> None:
        self._buffers: dict[MetadataIndex, Tensor] = {}

    @torch.no_grad()
    def fill(self, live: Mapping[MetadataIndex, Tensor]) -> dict[MetadataIndex, Tensor]:
        """Copies the tensors; the copies stay as they are until the next call."""
        buffers = {index: self._buffer(index, tensor) for index, tensor in live.items()}
        self._buffers = buffers  # parts that are no longer saved are let go
        on_device = False
        for index, tensor in live.items():
            buffers[index].copy_(tensor, non_blocking=True)
            on_device |= tensor.is_cuda
        if on_device:
            torch.cuda.synchronize()
        return buffers

    def _buffer(self, index: MetadataIndex, tensor: Tensor) -> Tensor:
        kept = self._buffers.get(index)
        if kept is not None and kept.shape == tensor.shape and kept.dtype == tensor.dtype:
            return kept
        # Page-locked memory takes a copy from a GPU at the full speed of the bus.
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


class StagedPlanner(DefaultSavePlanner):
    """Plans a save of tensors that were copied before it began.

    Args:
        tree: nested dicts of tensors, ShardedTensors and DTensors.
        staging: takes the copy.

    Raises:
        TypeError: something in the tree is no tensor; the message names it.
    """

    def __init__(self, tree: dict[str, Any], staging: Staging) -> None:
        super().__init__()
        super().set_up_planner(tree)
        plan = super().create_local_plan()
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                raise TypeError(f"{item.index.fqn}: no tensor; it belongs to the plain trees")
        live = {_key(item.index): self.lookup_object(item.index).detach() for item in plan.items}
        self._copies = staging.fill(live)
        self._local_plan = plan
        self.state_dict = {}  # what goes on being trained is not looked at any more

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        # The names' nesting is of no use to the reader, and would travel between workers.
        self.plan = dataclasses.replace(self._local_plan, planner_data={})
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._copies[_key(write_item.index)]


def item_bytes(item: WriteItem) -> int:
    """Bytes of the part of a tensor that an item stands for."""
    assert item.tensor_data is not None
    data = item.tensor_data
    return data.chunk.sizes.numel() * data.properties.dtype.itemsize


def _key(index: MetadataIndex) -> MetadataIndex:
    # Without the hint of its place in a list, which planning changes.
    return MetadataIndex(index.fqn, index.offset)
