"""The manifest of a prepared dataset: files, row groups, rows, columns, digest."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"
STATISTICS_NAME = "statistics.json"
FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")


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
    """One Parquet file: path relative to the dataset, rows of each row group, content digest."""

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
    """

    name: str
    columns: tuple[Column, ...]
    splits: dict[str, tuple[Shard, ...]]
    ceilings: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

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
        """SHA-256 over columns and shard contents, in order; equal datasets have equal digests."""
        content = {
            "columns": [asdict(c) for c in self.columns],
            "splits": {
                split: [[s.path, list(s.row_groups), s.sha256] for s in shards]
                for split, shards in sorted(self.splits.items())
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        tree = {"format_version": FORMAT_VERSION, "digest": self.digest, **asdict(self)}
        (Path(folder) / MANIFEST_NAME).write_text(json.dumps(tree, indent=1) + "\n")


def load_manifest(folder: str | Path) -> Manifest:
    """Reads a dataset's manifest.

    Raises:
        DatasetError: no dataset there, a newer format, or a manifest that was edited by hand.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: no dataset here; make one with "
            f"`python -m jobs.prepare RECIPE --output {folder}`"
        ) from None
    except (OSError, json.JSONDecodeError) as error:
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
    )
    if manifest.digest != digest:
        raise DatasetError(f"{path}: content and digest disagree; run jobs.prepare again")
    return manifest
