"""Which files make up each split: folders, globs and date ranges, listed in parallel."""

import posixpath
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pipeline.config.data import DATE_FORMAT, DataConfig
from pipeline.config.locations import is_uri
from pipeline.config.splits import DATE_FIELD, SplitConfig
from pipeline.data.manifest import DatasetError
from pipeline.data.storage import Store, StoredFile, open_store

_REQUESTS = 32
_NAMED = 5


@dataclass(frozen=True)
class _Wanted:
    """One pattern of a split, relative to the root, for one day or for all.

    `key` is how messages call the split.
    """

    key: str
    pattern: str
    day: date | None


def data_root(data: DataConfig) -> str:
    """The folder below which all files lie: data.path, or what it shares with absolute files.

    Credentials and options of a URI stay with it.
    """
    return _root(data.path, data.splits.by_name.values() if data.splits else ())


def _root(path: str, splits: Iterable[SplitConfig]) -> str:
    own = _key(path)
    folders = [own]
    for split in splits:
        folders += [_literal_folder(_key(p)) for p in split.files if _is_absolute(p)]
    root = posixpath.commonpath(folders)
    if root == own:
        return path
    if not is_uri(path):
        return root
    base, mark, options = path.partition("?")
    scheme, separator, rest = base.partition("://")
    return f"{scheme}{separator}{rest.partition('/')[0]}{root.rstrip('/')}{mark}{options}"


def list_splits(data: DataConfig, store: Store) -> dict[str, list[StoredFile]]:
    """The files of every split in reading order: as the patterns and days come, then by name.

    Args:
        data: with ``splits``.
        store: of :func:`data_root`; paths are relative to it.

    Raises:
        DatasetError: a day or a pattern without files, or a file in two splits.
        OSError: the store does not answer.
    """
    assert data.splits is not None
    wanted = list(_patterns(data))
    listed = _listed(wanted, store)
    absent = [item for item, files in zip(wanted, listed, strict=True) if not files]
    if absent:
        raise DatasetError(_absent(absent, store))
    splits: dict[str, dict[str, StoredFile]] = {name: {} for name in data.splits.by_name}
    for item, files in zip(wanted, listed, strict=True):
        splits[item.key.rpartition(".")[2]] |= {file.path: file for file in files}
    _check_disjoint(splits, store)
    return {name: list(files.values()) for name, files in splits.items()}


def list_days(
    path: str, split: SplitConfig, date_format: str | None, key: str
) -> tuple[Store, dict[date | None, list[StoredFile]]]:
    """The files of one split by the day of ``{date}``, in reading order; None = without a day.

    Args:
        path: the folder that relative patterns start from.
        split: which files.
        date_format: of ``{date}``; None = %Y-%m-%d.
        key: how messages call the split.

    Raises:
        DatasetError: a day or a pattern without files.
        OSError: the store does not answer.
    """
    root = _root(path, [split])
    store = open_store(root)
    wanted = list(_patterns_of(split, key, _key(root), _key(path), date_format))
    days: dict[date | None, dict[str, StoredFile]] = {}
    absent = []
    for item, files in zip(wanted, _listed(wanted, store), strict=True):
        days.setdefault(item.day, {}).update({file.path: file for file in files})
        absent += [] if files else [item]
    if absent:
        raise DatasetError(_absent(absent, store))
    return store, {day: list(files.values()) for day, files in days.items()}


def _listed(wanted: Sequence[_Wanted], store: Store) -> list[list[StoredFile]]:
    with ThreadPoolExecutor(min(_REQUESTS, len(wanted))) as pool:
        return list(pool.map(lambda item: store.files(item.pattern), wanted))


def _patterns(data: DataConfig) -> Iterable[_Wanted]:
    assert data.splits is not None
    root, own = _key(data_root(data)), _key(data.path)
    for name, split in data.splits.by_name.items():
        yield from _patterns_of(split, f"data.splits.{name}", root, own, data.date_format)


def _patterns_of(
    split: SplitConfig, key: str, root: str, own: str, date_format: str | None
) -> Iterable[_Wanted]:
    days: Sequence[date | None] = split.days or [None]
    for day in days:
        for pattern in split.files:
            full = _key(pattern) if _is_absolute(pattern) else posixpath.join(own, pattern)
            relative = posixpath.relpath(posixpath.normpath(full), root)
            text = "" if relative == "." else relative
            if day is not None:
                text = text.replace(DATE_FIELD, day.strftime(date_format or DATE_FORMAT))
            yield _Wanted(key, text, day)


def _absent(absent: list[_Wanted], store: Store) -> str:
    first = absent[0]
    key = first.key
    place = store.name_of(first.pattern)
    if first.day is None:
        return f"{key}.files: nothing is called {place}; correct it, or put the files there"
    days = sorted({item.day for item in absent if item.key == key and item.day})
    named = ", ".join(map(str, days[:_NAMED])) + (" …" if len(days) > _NAMED else "")
    return (
        f"{key}: no files for {named} (looked for {place}); restore the day, change first_date or "
        "last_date, or list the day under skip_dates"
    )


def _check_disjoint(splits: dict[str, dict[str, StoredFile]], store: Store) -> None:
    names = list(splits)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            shared = splits[first].keys() & splits[second].keys()
            if shared:
                raise DatasetError(
                    f"{store.name_of(min(shared))}: is in both {first} and {second} "
                    f"({len(shared)} files are); a row may be in one split only: change "
                    f"data.splits.{first} or data.splits.{second}"
                )


def _is_absolute(pattern: str) -> bool:
    return is_uri(pattern) or pattern.startswith("/")


def _key(location: str) -> str:
    """A location's path on its file system, with a leading slash: ``/folder`` of a bucket."""
    if not is_uri(location):
        return posixpath.normpath(Path(location).absolute().as_posix())
    path = location.partition("://")[2].partition("?")[0].partition("/")[2]
    return posixpath.normpath(f"/{path}")


def _literal_folder(key: str) -> str:
    """The folder part in front of the first wildcard or date."""
    cut = re.split(r"[*?]|" + re.escape(DATE_FIELD), key, maxsplit=1)[0]
    return posixpath.dirname(cut) or "/"
