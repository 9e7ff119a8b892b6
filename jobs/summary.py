"""The ``--summary`` file of a job: its outcome as JSON."""

import json
from pathlib import Path
from typing import Any


class SummaryError(OSError):
    """The summary file cannot be written."""


def check_summary(path: Path | None) -> None:
    """Makes sure, before any work, that the summary can be written. Raises SummaryError."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        partial = path.with_name(path.name + ".partial")
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise SummaryError(f"--summary {path}: cannot be written: {error}") from error


def write_summary(path: Path | None, tree: dict[str, Any]) -> None:
    """Writes the summary whole or not at all."""
    if path is None:
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(tree, indent=1) + "\n")
    partial.replace(path)
