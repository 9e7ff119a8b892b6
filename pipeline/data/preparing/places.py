"""Where a dataset is built, and how it becomes visible: all at once or not at all.

On a local disk it is built in the sibling folder ``OUTPUT.partial``, which is renamed. An object
store renames nothing: there every file gets a name no other run uses, and the manifest, written
last, makes them a dataset.
"""

import fcntl
import secrets
import shutil
from pathlib import Path
from typing import IO, Protocol

from pipeline.config.locations import is_uri, mask
from pipeline.data.manifest import (
    CLAIM_PREFIX,
    MANIFEST_NAME,
    DatasetError,
    Manifest,
    load_manifest,
)
from pipeline.data.preparing.statistics import VOCABULARY_FOLDER
from pipeline.data.storage import Store, open_store

_LOCK = ".lock"


class Place(Protocol):
    """What a writer needs of the place it writes to.

    Attributes:
        store: the folder in which files are written.
    """

    store: Store

    def name(self, path: str) -> str:
        """The path under which a file of the dataset is written here."""
        ...

    def publish(self, manifest: Manifest) -> None:
        """Makes the dataset visible, in place of the one before."""
        ...

    def abandon(self) -> None:
        """Removes what was written; does nothing after ``publish``."""
        ...


def claim_place(output: str | Path, overwrite: bool) -> Place:
    """A place for a new dataset at ``output``, a folder or a URI.

    Raises:
        DatasetError: the output holds something this run may not replace, or is being written.
    """
    if is_uri(str(output)):
        return StorePlace(str(output), overwrite)
    return LocalPlace(Path(output), overwrite)


class LocalPlace:
    """The sibling folder ``OUTPUT.partial``, renamed when the dataset is complete.

    An interrupted run leaves only the partial folder, which the next run to the same output
    clears away.
    """

    def __init__(self, output: Path, overwrite: bool) -> None:
        self.output = output
        self._partial = _sibling(output, "partial")
        self._replaced = _sibling(output, "replaced")
        refuse_taken_output(open_store(output), overwrite)
        self._lock = self._claim()
        self.store = open_store(self._partial)

    def name(self, path: str) -> str:
        return path

    def publish(self, manifest: Manifest) -> None:
        manifest.save(self._partial)
        if self.output.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.output.rename(self._replaced)
        self._partial.rename(self.output)
        (self.output / _LOCK).unlink()
        shutil.rmtree(self._replaced, ignore_errors=True)
        self._lock.close()

    def abandon(self) -> None:
        if not self._lock.closed:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._lock.close()

    def _claim(self) -> IO[str]:
        self._partial.mkdir(parents=True, exist_ok=True)
        lock = (self._partial / _LOCK).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise DatasetError(
                f"{self._partial}: another jobs.prepare is writing this dataset; wait for it or "
                "choose another --output"
            ) from None
        # A crash between the two renames of `publish` leaves the old dataset beside its place.
        if self._replaced.exists() and not self.output.exists():
            self._replaced.rename(self.output)
        for leftover in self._partial.iterdir():
            if leftover.name != _LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return lock


class StorePlace:
    """The output itself, in an object store: files of this run carry its token in their names.

    ``.preparing-TOKEN`` stands in the folder while the run works. The manifest is written last;
    then the files of the dataset before, and what interrupted runs left, are removed. A reader
    sees the old dataset or the new one, and an interrupted run leaves no manifest of its own.
    """

    def __init__(self, output: str, overwrite: bool) -> None:
        self._token = secrets.token_hex(4)
        self._output = output
        self._open = False
        try:
            self.store = open_store(output)
            refuse_taken_output(self.store, overwrite)
            # Only one run may finish: whoever comes later takes the claim of those before.
            self._others = _claims(self.store)
            self.store.write_text(CLAIM_PREFIX + self._token, "")
            self._open = True
            self.store.remove_files([CLAIM_PREFIX + token for token in self._others])
        except OSError as error:
            raise DatasetError(f"--output {mask(str(error))}") from error

    def name(self, path: str) -> str:
        """``train/part-00000.parquet`` → ``train/part-00000-TOKEN.parquet``."""
        if path.startswith(VOCABULARY_FOLDER):
            return path.replace(VOCABULARY_FOLDER, f"{VOCABULARY_FOLDER}-{self._token}", 1)
        stem, dot, suffix = path.rpartition(".")
        return f"{stem}-{self._token}{dot}{suffix}"

    def publish(self, manifest: Manifest) -> None:
        if not self.store.exists(CLAIM_PREFIX + self._token):
            raise DatasetError(
                f"{self.store.location}: another jobs.prepare with --overwrite took this output "
                "over; this run's files are removed"
            )
        # An unreadable old manifest names no files: they stay, and harm nobody.
        try:
            before = load_manifest(self._output)
        except DatasetError:
            before = None
        manifest.save(self._output)
        self._open = False
        kept = {shard.path for shards in manifest.splits.values() for shard in shards}
        if before is not None:
            shards = {shard.path for shards in before.splits.values() for shard in shards}
            self.store.remove_files(sorted(shards - kept))
            self._remove_written(_token_of(before.statistics))
        for token in self._others:
            self._remove_written(token)
        self.store.remove_files([CLAIM_PREFIX + self._token])

    def abandon(self) -> None:
        if self._open:
            self._open = False
            self._remove_written(self._token)
            self.store.remove_files([CLAIM_PREFIX + self._token])

    def _remove_written(self, token: str | None) -> None:
        if token is not None:
            marked = [f.path for f in self.store.files() if f"-{token}" in f.path]
            self.store.remove_files(marked)


def refuse_taken_output(store: Store, overwrite: bool) -> None:
    """Raises DatasetError if the folder holds something this run may not replace."""
    place = store.location
    if not store.exists():
        return
    if store.is_file():
        raise DatasetError(f"{place}: is a file; --output must name a folder")
    if store.exists(MANIFEST_NAME):
        if not overwrite:
            raise DatasetError(
                f"{place}: already holds a dataset; pass --overwrite to replace it or choose "
                "another --output"
            )
        return
    claims = _claims(store)
    if claims and not overwrite:
        raise DatasetError(
            f"{place}: another jobs.prepare is writing here, or was interrupted; wait for it, or "
            "if none is running pass --overwrite to clear what it left"
        )
    if not claims and store.holds_files():
        raise DatasetError(
            f"{place}: holds files but no dataset, so nothing here is replaced (not even with "
            "--overwrite); choose another --output"
        )


def _claims(store: Store) -> list[str]:
    """Tokens of the runs that are writing here, or were interrupted."""
    return [
        name.removeprefix(CLAIM_PREFIX) for name in store.names() if name.startswith(CLAIM_PREFIX)
    ]


def _token_of(statistics: str) -> str | None:
    """The token in ``statistics-TOKEN.json``."""
    stem = statistics.removesuffix(".json")
    return stem.partition("-")[2] or None


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
