"""``run.json``: what a run folder says of its run, so that a new process can take it up again."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.files import commit_file, remove_folder
from pipeline.checkpoint.marker import MARKER, check_identity
from pipeline.config.load import ConfigError
from pipeline.config.locations import inside, mask
from pipeline.data.storage import Store, open_store

FILE = "run.json"
_FORMAT = 1
_CHECKPOINTS = "checkpoints/step-*/" + MARKER

Status = Literal["running", "stopped", "failed", "finished"]


class ResumeError(ValueError):
    """A run cannot be taken up again; the message says which, why and what to do."""


@dataclass(frozen=True)
class RunFile:
    """What is known of a run.

    Attributes:
        run_id: of MLflow; also the run folder's name.
        name: the experiment's.
        identity: what must stay the same (``pipeline.training.identity``).
        status: ``running`` is also what a process that was killed leaves.
        began: when, ISO 8601, UTC.
    """

    run_id: str
    name: str
    identity: dict[str, Any]
    status: Status
    began: str

    @staticmethod
    def new(run_id: str, name: str, identity: Mapping[str, Any]) -> "RunFile":
        """Of a run that begins now."""
        began = datetime.now(UTC).isoformat(timespec="microseconds")
        return RunFile(run_id, name, dict(identity), "running", began)

    def check_same(self, identity: Mapping[str, Any]) -> None:
        """Raises ResumeError, with every difference, where a run may not go on as this one."""
        try:
            check_identity(f"--resume {self.run_id}", self.identity, identity)
        except CheckpointError as error:
            raise ResumeError(
                f"{error}. Only workers, threads, device, sharding, evaluation, logging, reading "
                "ahead, checkpoints, failures, Ray and MLflow may change"
            ) from None

    def save(self, run_folder: str) -> None:
        """Writes it whole or not at all. Raises OSError."""
        store = open_store(run_folder)
        if store.is_local:
            Path(store.root).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"
        commit_file(store, FILE, text.encode())


def run_to_resume(storage: str, name: str, run_id: str | None) -> RunFile | None:
    """The run to go on with.

    Args:
        storage: ``storage.path``.
        name: of the experiment.
        run_id: the run; None = the newest unfinished one of this name, if there is any.

    Raises:
        ResumeError: there is no such run, or it is finished.
    """
    if run_id is not None:
        run = _read(open_store(inside(storage, run_id)))
        if run is None:
            known = ", ".join(f"{r.run_id} ({r.name}, {r.status})" for r in _runs(storage)[:5])
            raise ResumeError(
                f"--resume {run_id}: no such run under storage.path {mask(storage)}; there are "
                + (known or "none")
                + "; a run that is finished leaves nothing to resume"
            )
        if run.status == "finished":
            raise ResumeError(f"--resume {run_id}: this run is finished; start a new one")
        return run
    unfinished = [r for r in _runs(storage) if r.name == name and r.status != "finished"]
    return unfinished[0] if unfinished else None


def last_checkpoint(run_folder: str) -> int | None:
    """The step of the newest checkpoint in a run folder, or None."""
    steps = [
        int(file.path.split("/")[-2].rpartition("-")[2])
        for file in open_store(run_folder).files(_CHECKPOINTS)
    ]
    return max(steps, default=None)


def remove_run_folder(run_folder: str) -> None:
    """Removes all that a finished run kept; what cannot be removed stays."""
    with suppress(OSError):
        remove_folder(open_store(run_folder), FILE)


def _runs(storage: str) -> list[RunFile]:
    """All runs under a folder, newest first."""
    store = open_store(storage)
    found = (_read(open_store(inside(storage, name))) for name in store.names())
    return sorted((r for r in found if r is not None), key=lambda r: r.began, reverse=True)


def _read(store: Store) -> RunFile | None:
    """Raises ConfigError where there is a file that cannot be used."""
    if not store.is_file(FILE):
        return None
    try:
        tree = json.loads(store.read_text(FILE))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{store.name_of(FILE)}: cannot be read: {error}") from error
    if tree.pop("format", None) != _FORMAT:
        raise ConfigError(
            f"{store.name_of(FILE)}: written by another version of this code; resume with that one"
        )
    return RunFile(**tree)
