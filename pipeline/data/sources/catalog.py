"""Catalogs: manifest and statistics of data somebody else wrote, kept for the next run.

A catalog is a folder under ``storage.path/catalogs``, named after what it was made from: the
listing of the files and the columns the experiment reads and counts. It can be removed at any
time; the next run makes it again.
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import Experiment
from pipeline.config.faults import FaultsConfig
from pipeline.config.locations import is_uri, mask
from pipeline.data.manifest import MANIFEST_NAME, STATISTICS_NAME, Column, Manifest
from pipeline.data.sources.counting import count_columns
from pipeline.data.sources.footers import Footer, agreed_columns, read_footers
from pipeline.data.sources.listing import data_root, list_splits
from pipeline.data.sources.roles import NeededColumn, needed_columns
from pipeline.data.storage import Store, StoredFile, open_store

_VERSION = 1
_FOLDER = "catalogs"


def open_catalog(experiment: Experiment, note: Callable[[str], None]) -> Path:
    """The catalog of the experiment's ``data.splits``, made if this listing has none yet.

    Args:
        experiment: with ``data.splits``.
        note: told what is being done, where it may take long.

    Raises:
        DatasetError: files are missing, unreadable or disagree on a column.
        OSError: the store does not answer.
    """
    store = open_store(data_root(experiment.data))
    files = list_splits(experiment.data, store)
    needed = needed_columns(experiment)
    folder = _home(experiment) / _FOLDER / _key(store, files, needed, experiment.data.faults)
    if (folder / MANIFEST_NAME).exists():
        return folder
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        _build(experiment, store, files, needed, open_store(partial), note)
        try:
            partial.rename(folder)
        except OSError:
            # Another run was faster; what it made is the same.
            if not (folder / MANIFEST_NAME).exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _build(
    experiment: Experiment,
    store: Store,
    files: dict[str, list[StoredFile]],
    needed: Sequence[NeededColumn],
    catalog: Store,
    note: Callable[[str], None],
) -> None:
    listed = [file for group in files.values() for file in group]
    note(f"reading the footers of {len(listed):,} files in {store.location} ...")
    read = iter(read_footers(store, listed, needed))
    footers = {split: [next(read) for _ in group] for split, group in files.items()}
    together = [footer for group in footers.values() for footer in group]
    strict = experiment.data.faults.schema_drift == "error"
    columns = agreed_columns(store, together, needed, strict)
    manifest = Manifest(
        name=store.location.rstrip("/").rpartition("/")[2] or experiment.name,
        columns=columns,
        splits={split: tuple(f.shard for f in group) for split, group in footers.items()},
        source={"path": mask(experiment.data.path), "splits": _described(experiment)},
        root=data_root(experiment.data),
    )
    counted = [c for c, need in zip(columns, needed, strict=True) if need.counted]
    if counted:
        note(
            f"counting ids and numbers of {len(counted)} columns in {manifest.rows('train'):,} "
            "train rows (once for this data) ..."
        )
    shards = manifest.splits["train"] if counted else ()
    count_columns(store, shards, counted, experiment.data.faults).save(catalog)
    _add_uncounted(catalog, columns, needed, footers["train"])
    manifest.save(catalog.root)


def _add_uncounted(
    catalog: Store,
    columns: Sequence[Column],
    needed: Sequence[NeededColumn],
    footers: Sequence[Footer],
) -> None:
    """Says of the numbers that were not counted how often they may be missing."""
    statistics: dict[str, Any] = json.loads(catalog.read_text(STATISTICS_NAME))
    for column, need in zip(columns, needed, strict=True):
        if column.role != "numeric" or need.counted:
            continue
        nulls = sum(footer.nulls.get(column.name, 0) for footer in footers)
        # A footer does not count NaN, which is missing too.
        may_hold_nan = column.type in ("float", "double", "halffloat")
        statistics["numeric"][column.name] = {"missing": max(nulls, int(may_hold_nan))}
    catalog.write_text(STATISTICS_NAME, json.dumps(statistics, indent=1) + "\n")


def _key(
    store: Store,
    files: dict[str, list[StoredFile]],
    needed: Sequence[NeededColumn],
    faults: FaultsConfig,
) -> str:
    content = {
        "version": _VERSION,
        "root": store.location,
        "files": {s: [[f.path, f.size, f.modified] for f in g] for s, g in files.items()},
        "columns": [asdict(column) for column in needed],
        "faults": faults.model_dump(include={"unreadable", "schema_drift"}),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _described(experiment: Experiment) -> dict[str, Any]:
    assert experiment.data.splits is not None
    tree: dict[str, Any] = experiment.data.splits.model_dump(mode="json", exclude_defaults=True)
    masked: dict[str, Any] = json.loads(mask(json.dumps(tree)))
    return masked


def _home(experiment: Experiment) -> Path:
    """``storage.path``, or where that is an object store a folder of this machine."""
    if not is_uri(experiment.storage.path):
        return Path(experiment.storage.path)
    return Path(tempfile.gettempdir()) / f"ple-runs-{os.getuid()}"
