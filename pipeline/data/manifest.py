"""The manifest of a prepared dataset: files, row groups, rows, columns, digest."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.locations import mask
from pipeline.data.storage import Store, open_store

MANIFEST_NAME = "manifest.json"
STATISTICS_NAME = "statistics.json"
FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
# A file of this name stands in a folder of an object store while jobs.prepare writes there.
CLAIM_PREFIX = ".preparing-"
_READABLE_SHARDS = 2_000


class DatasetError(ValueError):
    """A dataset cannot be used; the message names the file, column or split and the remedy."""


@dataclass(frozen=True)
class Column:
    """One column of the shards.

    Attributes:
        name: column name.
        role: ``categorical`` (id, or list of ids), ``numeric``, ``label``, ``weight`` (of a row,
            or of the ids of a list), ``space`` (0/1 sample-space indicator) or ``key`` (carried
            along, not a feature).
        type: Arrow type as text, for example ``string``, ``int64``, ``list<item: int64>``.
        weight_of: for the weights of an id list, the list's column.
    """

    name: str
    role: str
    type: str
    weight_of: str | None = None

    @property
    def is_list(self) -> bool:
        return self.type.startswith(("list<", "large_list<"))


@dataclass(frozen=True)
class Shard:
    """One Parquet file: path relative to the dataset, rows of each row group, content digest.

    ``sha256`` is of the whole file where jobs.prepare wrote it, and of its size and footer where
    somebody else did (``sources.footers``).
    """

    path: str
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class Manifest:
    """What a dataset consists of.

    Attributes:
        name: recipe or dataset name.
        columns: every column of every shard, in order.
        splits: shards by split (``train``, ``valid``, ``test``), in reading order.
        ceilings: highest reachable metric by split and task, where the generator knows it
            (``{"test": {"click": {"auc": 0.81}}}``).
        source: how it was made, for the record.
        root: where the shards are, if not beside the manifest.
        statistics: the file of the feature statistics, beside the manifest.
    """

    name: str
    columns: tuple[Column, ...]
    splits: dict[str, tuple[Shard, ...]]
    ceilings: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    root: str | None = None
    statistics: str = STATISTICS_NAME

    def rows(self, split: str) -> int:
        return sum(shard.rows for shard in self.splits[split])

    @property
    def all_rows(self) -> dict[str, int]:
        """Rows by split."""
        return {split: self.rows(split) for split in self.splits}

    def column(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        known = ", ".join(c.name for c in self.columns)
        raise DatasetError(f"dataset {self.name!r} has no column {name!r} (columns: {known})")

    @property
    def digest(self) -> str:
        """SHA-256 over columns and shard contents, in order; equal datasets have equal digests.

        Shards are numbered, not named: where they lie and what they are called does not matter.
        """
        content = {
            "columns": [asdict(c) for c in self.columns],
            "splits": {
                split: [
                    [shard_name(split, n), list(s.row_groups), s.sha256]
                    for n, s in enumerate(shards)
                ]
                for split, shards in sorted(self.splits.items())
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes ``manifest.json``, without the credentials that ``root`` may hold."""
        tree = {
            "format_version": FORMAT_VERSION,
            "digest": self.digest,
            "name": self.name,
            "columns": [asdict(column) for column in self.columns],
            "splits": {s: [vars(shard) for shard in shards] for s, shards in self.splits.items()},
            "ceilings": self.ceilings,
            "source": self.source,
            "root": None if self.root is None else mask(self.root),
            "statistics": self.statistics,
        }
        # Laid out for people, unless it is so long that writing it so takes seconds.
        indent = 1 if sum(map(len, self.splits.values())) < _READABLE_SHARDS else None
        open_store(folder).write_text(MANIFEST_NAME, json.dumps(tree, indent=indent) + "\n")


def shard_name(split: str, number: int) -> str:
    """Path of a split's shard in a dataset that jobs.prepare writes into a local folder."""
    return f"{split}/part-{number:05d}.parquet"


def load_manifest(folder: str | Path) -> Manifest:
    """Reads a dataset's manifest.

    Args:
        folder: a path or a URI.

    Raises:
        DatasetError: no dataset there, a newer format, or a manifest that was edited by hand.
    """
    try:
        store = open_store(folder)
        text = store.read_text(MANIFEST_NAME)
    except FileNotFoundError as error:
        raise DatasetError(f"{error}; {_no_manifest(store)}") from None
    except OSError as error:
        raise DatasetError(f"cannot read the manifest: {error}") from error
    path = store.name_of(MANIFEST_NAME)
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: cannot read the manifest: {error}") from error
    if tree.pop("format_version", None) != FORMAT_VERSION:
        raise DatasetError(f"{path}: written in another format; run jobs.prepare again")
    digest = tree.pop("digest")
    manifest = Manifest(
        name=tree["name"],
        columns=tuple(Column(**column) for column in tree["columns"]),
        splits={
            split: tuple(
                Shard(s["path"], tuple(s["row_groups"]), s["bytes"], s["sha256"]) for s in shards
            )
            for split, shards in tree["splits"].items()
        },
        ceilings=tree["ceilings"],
        source=tree["source"],
        root=tree.get("root"),
        statistics=tree.get("statistics", STATISTICS_NAME),
    )
    if manifest.digest != digest:
        raise DatasetError(f"{path}: content and digest disagree; run jobs.prepare again")
    return manifest


def _no_manifest(store: Store) -> str:
    """What to do where there is no manifest: prepare, or say which Parquet files are for what."""
    try:
        if any(name.startswith(CLAIM_PREFIX) for name in store.names()):
            return (
                "jobs.prepare is still writing this dataset, or was interrupted: wait for it, or "
                "run it again with --overwrite"
            )
        found = [file.path for file in store.files() if file.path.endswith((".parquet", ".parq"))]
    except OSError:
        found = []
    if not found:
        return (
            "no dataset here; make one with "
            f"`python -m jobs.prepare RECIPE --output {store.location}`"
        )
    return (
        f"there are {len(found):,} Parquet files here (such as {found[0]}) but jobs.prepare did "
        "not write them; say which are for what, by file, folder or glob:\n"
        "data:\n"
        f"  path: {store.location}\n"
        "  splits:\n"
        f'    train: {{files: "{_suggested(found[0])}"}}\n'
        f'    valid: {{files: "{_suggested(found[-1])}"}}\n'
        "(with first_date and last_date, {date} in `files` stands for every day between them)"
    )


def _suggested(path: str) -> str:
    folder, _, _ = path.rpartition("/")
    return f"{folder}/*.parquet" if folder else "*.parquet"
