"""Writes one checkpoint: every worker its tensors and its tree, the chief the rest and the marker.

torch.distributed.checkpoint leads through it: it plans, waits for all workers, and hands an error
of any of them to all.
"""

import dataclasses
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from pipeline.checkpoint.files import (
    FileRecord,
    check_space,
    commit_file,
    remove_folder,
    write_file,
    writing,
)
from pipeline.checkpoint.index import INDEX, Piece, index_text
from pipeline.checkpoint.marker import MARKER, Marker
from pipeline.checkpoint.staging import item_bytes
from pipeline.data.storage import Store

SHARED = "shared.safetensors"
PLAN = "sharding_plan.json"


def own_name(rank: int) -> str:
    """The file of a worker's own tree."""
    return f"own-{rank:05d}.safetensors"


@dataclass(frozen=True)
class ChiefPart:
    """What the chief adds: small files by name, and the marker, whose files are still to come."""

    files: dict[str, bytes]
    marker: Marker


class CheckpointWriter(StorageWriter):
    """Writes into one folder.

    Args:
        store: the folder of the checkpoint.
        rank: this worker.
        own: its plain tree, encoded.
        chief: on the chief.

    Attributes:
        marker: on the chief, once it is written.
    """

    def __init__(self, store: Store, rank: int, own: bytes, chief: ChiefPart | None) -> None:
        self._store, self._rank, self._own, self._chief = store, rank, own, chief
        self.marker: Marker | None = None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return dataclasses.replace(plan, storage_data=len(self._own))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the chief, before anybody writes."""
        assert self._chief is not None
        tensors = sum(item_bytes(item) for plan in plans for item in plan.items)
        trees = sum(plan.storage_data for plan in plans) + sum(map(len, self._chief.files.values()))
        check_space(self._store, tensors + trees)
        # What a damaged checkpoint of the same step left.
        remove_folder(self._store, MARKER)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        if plan.items:
            name = f"tensors-{self._rank:05d}.bin"
            with writing(self._store, name) as output:
                for item in plan.items:
                    start = output.size
                    copy = planner.resolve_data(item)
                    assert isinstance(copy, Tensor)
                    output.write(raw_bytes(copy))
                    piece = Piece(name, start, output.size - start)
                    results.append(WriteResult(item.index, piece.length, piece))
            results.append(_file_result(output.record(name)))
        results.append(_file_result(write_file(self._store, own_name(self._rank), self._own)))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the chief, after all have written: what belongs to all, then the marker."""
        assert self._chief is not None
        everything = [result for part in results for result in part]
        files = [r.storage_data for r in everything if isinstance(r.storage_data, FileRecord)]
        pieces = {r.index: r.storage_data for r in everything if isinstance(r.storage_data, Piece)}
        index = index_text(metadata, pieces).encode()
        for name, data in {**self._chief.files, INDEX: index}.items():
            files.append(write_file(self._store, name, data))
        files.sort(key=lambda record: record.name)
        marker = dataclasses.replace(self._chief.marker, files=tuple(files))
        commit_file(self._store, MARKER, marker.to_text().encode())
        self.marker = marker

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return True


def raw_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a contiguous tensor on the CPU, without a copy."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _file_result(record: FileRecord) -> WriteResult:
    return WriteResult(MetadataIndex(record.name), record.size, record)
