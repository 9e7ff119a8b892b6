"""Plain trees as bytes and back, without pickle: JSON for the shape, safetensors for the arrays.

A tree is made of None, booleans, numbers, strings, lists, tuples, dicts, NumPy arrays and scalars,
and tensors. All of it comes back as it was, tensors on the CPU.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

# The JSON of the tree, kept among the arrays as bytes; arrays are called by their number.
_TREE = "tree"
# Key of the objects that stand for what JSON has no word for.
_TAG = "$"


def encode_tree(tree: Any) -> bytes:
    """A plain tree as bytes.

    Raises:
        TypeError: something in it is not plain; the message names its place.
    """
    arrays: dict[str, Tensor] = {}
    text = json.dumps(_plain(tree, "", arrays))
    arrays[_TREE] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return bytes(safetensors_save(arrays))


def decode_tree(data: bytes) -> Any:
    """The tree that :func:`encode_tree` was given.

    Raises:
        ValueError: these are not its bytes.
    """
    try:
        arrays = safetensors_load(data)
        tree = json.loads(arrays[_TREE].numpy().tobytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"not a plain tree: {error}") from error
    return _restored(tree, arrays)


def _plain(value: Any, place: str, arrays: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        # A NumPy float64 is a Python float, too, and comes back as one.
        return value
    if isinstance(value, np.generic):
        return _array("scalar", torch.from_numpy(np.array(value)), arrays)
    if isinstance(value, Tensor):
        return _array("tensor", value.detach(), arrays)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"{place}: an array of {value.dtype} is not plain")
        return _array("array", torch.from_numpy(np.ascontiguousarray(value)), arrays)
    if isinstance(value, list):
        return [_plain(item, f"{place}[{n}]", arrays) for n, item in enumerate(value)]
    if isinstance(value, tuple):
        items = [_plain(item, f"{place}[{n}]", arrays) for n, item in enumerate(value)]
        return {_TAG: "tuple", "items": items}
    if isinstance(value, Mapping):
        if _TAG not in value and all(type(key) is str for key in value):
            return {key: _plain(item, f"{place}.{key}", arrays) for key, item in value.items()}
        pairs = [
            [_plain(key, f"{place} (a key)", arrays), _plain(item, f"{place}[{key!r}]", arrays)]
            for key, item in value.items()
        ]
        return {_TAG: "dict", "items": pairs}
    raise TypeError(f"{place or 'the tree'}: a {type(value).__name__} is not plain")


def _array(kind: str, tensor: Tensor, arrays: dict[str, Tensor]) -> dict[str, str]:
    name = str(len(arrays))
    # A copy: what is saved must not change with what goes on being trained.
    arrays[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    return {_TAG: kind, "name": name}


def _restored(value: Any, arrays: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: _restored(item, arrays) for key, item in value.items()}
    if kind == "tuple":
        return tuple(_restored(item, arrays) for item in value["items"])
    if kind == "dict":
        return {_restored(key, arrays): _restored(item, arrays) for key, item in value["items"]}
    tensor = arrays[value["name"]]
    if kind == "tensor":
        return tensor
    return tensor.numpy()[()] if kind == "scalar" else tensor.numpy()


def split_state(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts a state_dict of nested dicts into its tensors (sharded ones too) and all the rest.

    Lists are not looked into: they belong to the rest.
    """
    tensors: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):  # a ShardedTensor and a DTensor are Tensors, too
            tensors[key] = value
        elif isinstance(value, Mapping):
            inner_tensors, inner_rest = split_state(value)
            if inner_tensors:
                tensors[key] = inner_tensors
            if inner_rest or not inner_tensors:
                rest[key] = inner_rest
        else:
            rest[key] = value
    return tensors, rest


def join_state(tensors: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Puts together what :func:`split_state` parted."""
    tree = dict(rest)
    for key, value in tensors.items():
        if isinstance(value, Mapping):
            tree[key] = join_state(value, rest.get(key, {}))
        else:
            tree[key] = value
    return tree
