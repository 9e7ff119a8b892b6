"""The state a run leaves, without what no two runs share, to be compared bit by bit."""

from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint.catalog import folder_name
from pipeline.checkpoint.marker import MARKER
from pipeline.checkpoint.trees import decode_tree
from pipeline.checkpoint.writer import PLAN

# Times and speeds.
TIMES = ("examples_per_second", "seconds", "elapsed")


def saved_state(run_folder: Path, step: int) -> dict[str, Any]:
    """All of a checkpoint but times, by file: raw bytes of tensors, and plain trees.

    Raises:
        OSError: there is no such checkpoint.
    """
    folder = run_folder / "checkpoints" / folder_name(step)
    state: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name in (MARKER, PLAN):
            continue
        data = path.read_bytes()
        state[path.name] = timeless(decode_tree(data)) if path.suffix == ".safetensors" else data
    return state


def timeless(tree: Any) -> Any:
    """A tree without times and speeds, tensors as bytes."""
    if isinstance(tree, dict) and "counters" in tree:
        # Values of a shuffle block that is read again are counted again; rows are not.
        tree = tree | {"counters": tree["counters"].get("rows")}
    if isinstance(tree, dict):
        return {k: timeless(v) for k, v in tree.items() if not any(t in k for t in TIMES)}
    if isinstance(tree, list | tuple):
        return [timeless(item) for item in tree]
    if isinstance(tree, torch.Tensor):
        return (str(tree.dtype), tuple(tree.shape), tree.numpy().tobytes())
    return tree


def differences(found: dict[str, Any], expected: dict[str, Any], what: str) -> list[str]:
    """Names of the entries that are not the same in both."""
    return [
        f"{what} {name}"
        for name in sorted({*found, *expected})
        # As text: a value that is not a number equals itself.
        if name not in found
        or name not in expected
        or (found[name] != expected[name] and repr(found[name]) != repr(expected[name]))
    ]
