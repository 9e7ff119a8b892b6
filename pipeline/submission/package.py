"""What is sent to the cluster: this project's code, the files named, what the job expects there."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.registry.provenance import REVISION_FILE, git_tags
from pipeline.submission.errors import SubmissionError
from pipeline.submission.expectations import EXPECTATIONS_FILE, Expectations
from pipeline.submission.words import JobCommand

_CODE = ("ple", "pipeline", "jobs", "configs")
_UNSENT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def write_package(
    folder: Path, root: Path, command: JobCommand, expectations: Expectations
) -> None:
    """Fills a folder with what the job needs of this project.

    Args:
        folder: empty or absent.
        root: this project: ``ple``, ``pipeline``, ``jobs``, ``configs``, ``pyproject.toml``.
        command: whose files go along.
        expectations: written beside the code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _CODE:
        if not (root / name).is_dir():
            raise SubmissionError(f"{root / name} is missing: submit from a checkout")
        shutil.copytree(root / name, folder / name, ignore=_UNSENT)
    shutil.copy(root / "pyproject.toml", folder)
    _write_json(folder / EXPECTATIONS_FILE, asdict(expectations))
    _write_json(folder / REVISION_FILE, git_tags(root / "pipeline" / "registry"))
    for place, source in command.sent.items():
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copy(source, folder / place)


def locked_packages(root: Path, stack: str) -> dict[str, Any]:
    """The ``pip`` part of a runtime environment that installs a lock file as it stands."""
    lock = root / "requirements" / f"{stack}-runtime.lock"
    lines = [line.strip() for line in lock.read_text().splitlines()]
    packages: Sequence[str] = [line for line in lines if line and not line.startswith("#")]
    return {"packages": packages, "pip_check": False, "pip_install_options": ["--no-deps"]}


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
