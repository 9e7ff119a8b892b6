"""Values of a column by which metrics are split: the most frequent ones, with readable names."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.load import ConfigError
from pipeline.data.columns import value_type
from pipeline.data.fitting import load_statistics
from pipeline.data.keys import NULL_KEY, keys_of
from pipeline.data.manifest import DatasetError, load_manifest
from pipeline.data.storage import open_store

OTHER, MISSING = "(other)", "(missing)"
_FILE = "slices.json"


@dataclass(frozen=True)
class SliceColumn:
    """A column and the values shown of it.

    Attributes:
        name: the column.
        keys: of the values, as ``KeyEncoder`` gives them; most frequent first.
        labels: the values as text.
    """

    name: str
    keys: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """Labels of all groups: the values, all others, rows without a value."""
        return (*self.labels, OTHER, MISSING)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 keys in ascending order, NULL_KEY among them, and the group of each."""
        keys = np.array([*self.keys, NULL_KEY], np.int64)
        groups = np.array([*range(len(self.keys)), len(self.keys) + 1], np.int64)
        order = np.argsort(keys)
        return keys[order], groups[order]


def fit_slices(columns: Sequence[str], limit: int, dataset: str | Path) -> tuple[SliceColumn, ...]:
    """The most frequent values of each column in the train split, by the dataset's vocabularies.

    Args:
        columns: ``evaluation.slices``.
        limit: values shown of each.
        dataset: the folder of manifest and statistics, a path or a URI.

    Raises:
        ConfigError: a column has no vocabulary, or holds lists.
        DatasetError: there is no such column, or the statistics cannot be read.
    """
    if not columns:
        return ()
    store, manifest = open_store(dataset), load_manifest(dataset)
    categorical = load_statistics(store, manifest).get("categorical", {})
    fitted = []
    for name in columns:
        column = manifest.column(name)
        path = categorical.get(name, {}).get("vocabulary")
        kind = value_type(column.type)
        if column.is_list or path is None or kind is None:
            known = [n for n, s in categorical.items() if s.get("vocabulary")]
            usable = [n for n in known if not manifest.column(n).is_list]
            raise ConfigError(
                f"evaluation.slices: column {name!r} of dataset {manifest.name!r} has no counted "
                f"values (role {column.role}, {column.type}); choose one of "
                + (", ".join(usable) or "none: it has no such column")
            )
        try:
            with store.open_input(path) as file:
                values = pq.read_table(file, columns=["value"])["value"].combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(
                f"{store.name_of(path)}: cannot read this vocabulary ({error}); run jobs.prepare "
                "again"
            ) from error
        values = values.slice(0, limit).cast(kind)
        keys = keys_of(values, name).tolist()
        fitted.append(SliceColumn(name, tuple(keys), tuple(str(v) for v in values.to_pylist())))
    return tuple(fitted)


def save_slices(slices: Sequence[SliceColumn], folder: str | Path) -> None:
    """Writes ``slices.json`` for :func:`load_slices`."""
    text = json.dumps([asdict(column) for column in slices]) + "\n"
    open_store(folder).write_text(_FILE, text)


def load_slices(folder: str | Path) -> tuple[SliceColumn, ...]:
    """Reads what :func:`save_slices` wrote. Raises DatasetError if it is not there."""
    store = open_store(folder)
    try:
        trees = json.loads(store.read_text(_FILE))
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"{store.name_of(_FILE)}: cannot read the slices ({error}); start the run again"
        ) from error
    return tuple(SliceColumn(t["name"], tuple(t["keys"]), tuple(t["labels"])) for t in trees)
