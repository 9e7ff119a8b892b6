"""Reads tensors of one checkpoint into tensors that are there, on any number of workers."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.index import INDEX, Piece, parse_index
from pipeline.checkpoint.writer import raw_bytes
from pipeline.data.storage import Store

# Numbers are read in whole rows of about so many bytes.
_BLOCK_BYTES = 32 << 20
_SHOWN_NAMES = 6

TensorKind = tuple[torch.dtype, tuple[int, ...]]


class CheckpointReader(StorageReader):
    """Reads from one folder, the files of which were verified."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._metadata: Metadata | None = None

    @property
    def metadata(self) -> Metadata:
        """What is saved. Raises ValueError or OSError."""
        if self._metadata is None:
            self._metadata = parse_index(self._store.read_text(INDEX))
        return self._metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[tuple[Piece, ReadItem]]] = {}
        for item in plan.items:
            assert item.type == LoadItemType.TENSOR, item
            piece = self.metadata.storage_data[item.storage_index]
            by_file.setdefault(piece.file, []).append((piece, item))
        for name, items in by_file.items():
            items.sort(key=lambda pair: pair[0].start)
            with self._store.open_input(name) as file, self._store.explaining(name):
                for piece, item in items:
                    target = planner.resolve_tensor(item).detach()
                    self._read(file, piece, item, target)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, file: Any, piece: Piece, item: ReadItem, target: Tensor) -> None:
        """Reads the wanted region of a part, row by row, no more than a block at once."""
        saved: Any = self.metadata.state_dict_metadata[item.storage_index.fqn]
        offset = item.storage_index.offset
        chunk = next(c for c in saved.chunks if offset is None or c.offsets == offset)
        dtype = saved.properties.dtype
        if target.numel() == 0:
            return
        # A tensor without dimensions is read as one row of one number.
        sizes, firsts = tuple(chunk.sizes) or (1,), tuple(item.storage_offsets) or (0,)
        lengths = tuple(item.lengths) or (1,)
        target = target if target.dim() else target.view(1)
        width = math.prod(sizes[1:])
        row_bytes = width * dtype.itemsize
        block = max(1, _BLOCK_BYTES // row_bytes)
        for start in range(0, lengths[0], block):
            height = min(block, lengths[0] - start)
            values = torch.empty(height * width, dtype=dtype)
            file.seek(piece.start + (firsts[0] + start) * row_bytes)
            _read_exactly(file, raw_bytes(values))
            values = values.reshape(height, *sizes[1:])
            for axis in range(1, len(sizes)):
                values = values.narrow(axis, firsts[axis], lengths[axis])
            target[start : start + height].copy_(values)

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None: ...

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return True


def tensor_kinds(tree: dict[str, Any]) -> dict[str, TensorKind]:
    """Types and whole sizes of the tensors of nested dicts, by dotted name."""
    flat = flatten_state_dict(tree)[0]
    return {name: (value.dtype, tuple(value.size())) for name, value in flat.items()}


def check_tensors(
    saved: Mapping[str, Any], trees: Sequence[Mapping[str, TensorKind]], location: str
) -> None:
    """Makes sure that workers together take all that is saved, and nothing else, in size and kind.

    Args:
        saved: metadata by name.
        trees: :func:`tensor_kinds` of every worker: one need not know the parts of others.
        location: of the checkpoint.

    Raises:
        CheckpointError: they do not; the message names what differs.
    """
    wanted = {name: kind for tree in trees for name, kind in tree.items()}
    differences = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    differences += [f"{name} has no place in this run" for name in saved if name not in wanted]
    for name, (dtype, size) in wanted.items():
        if name not in saved:
            continue
        there = saved[name].properties.dtype, tuple(saved[name].size)
        if (dtype, size) != there:
            differences.append(
                f"{name} is {there[0]} {list(there[1])} in the checkpoint, "
                f"{dtype} {list(size)} in this run"
            )
    if differences:
        shown = "\n  ".join(differences[:_SHOWN_NAMES])
        more = len(differences) - _SHOWN_NAMES
        raise CheckpointError(
            f"{location}: its tensors do not fit this run:\n  {shown}"
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nResume with the model and the optimizers it was saved with"
        )


def _read_exactly(file: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise OSError("the file ended early")
        done += count
