"""Where each part of each tensor lies: torch.distributed.checkpoint's metadata as JSON.

torch itself pickles this metadata. Here nothing is unpickled, and only tensors can be listed.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

INDEX = "index.json"


@dataclass(frozen=True)
class Piece:
    """Raw bytes of one part of a tensor, row-major: file, first byte, number of bytes."""

    file: str
    start: int
    length: int


def index_text(metadata: Metadata, pieces: dict[MetadataIndex, Piece]) -> str:
    """The index of all tensors as JSON text."""
    tensors = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata), name
        parts = []
        for chunk in tensor.chunks:
            piece = pieces[MetadataIndex(name, chunk.offsets)]
            place = {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)}
            parts.append({**place, "file": piece.file, "bytes": [piece.start, piece.length]})
        tensors[name] = {
            "dtype": str(tensor.properties.dtype).removeprefix("torch."),
            "size": list(tensor.size),
            "parts": parts,
        }
    return json.dumps({"tensors": tensors}, indent=1) + "\n"


def parse_index(text: str) -> Metadata:
    """Metadata as torch.distributed.checkpoint reads it; ``storage_data`` maps parts to pieces.

    Raises:
        ValueError: not such an index.
    """
    try:
        return _metadata(json.loads(text)["tensors"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an index of tensors: {error!r}") from error


def _metadata(tensors: dict[str, Any]) -> Metadata:
    described: dict[str, Any] = {}
    pieces: dict[MetadataIndex, Piece] = {}
    for name, tensor in tensors.items():
        dtype = getattr(torch, tensor["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{name}: no type of numbers: {tensor['dtype']!r}")
        chunks = []
        for part in tensor["parts"]:
            offsets, sizes = torch.Size(part["offsets"]), torch.Size(part["sizes"])
            start, length = part["bytes"]
            if "/" in part["file"] or "\\" in part["file"]:
                raise TypeError(f"{name}: a file outside of the checkpoint")
            if length != sizes.numel() * dtype.itemsize:
                raise TypeError(f"{name}: a part of another size than it says")
            chunks.append(ChunkStorageMetadata(offsets, sizes))
            pieces[MetadataIndex(name, offsets)] = Piece(part["file"], start, length)
        described[name] = TensorStorageMetadata(
            TensorProperties(dtype=dtype), torch.Size(tensor["size"]), chunks
        )
    return Metadata(state_dict_metadata=described, storage_data=pieces)
