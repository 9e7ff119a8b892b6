"""Where files live: one folder on a local disk or in an object store, behind pyarrow's interface.

Local paths and the schemes pyarrow knows (``s3://``, ``gs://``, ``hdfs://``, ``abfs://``) use its
own file systems, every other scheme fsspec's. Credentials come from where the file system's own
tools look for them, or stand in the URI; no message ever holds them.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from pipeline.config.locations import is_uri, mask

_WILDCARDS = re.compile(r"[*?]")
# File systems of keys, in which a folder is no more than a common prefix of names.
_OBJECT_STORES = {"s3", "gcs", "abfs"}
# What a store's own message holds → what that means and what to do about it.
_REASONS = (
    (r"NO_SUCH_BUCKET", "the bucket does not exist; create it or correct its name"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|"
        r"EXPIRED_TOKEN|UNAUTHENTICATED|[Cc]redentials|Forbidden|HTTP status 40[13]",
        "access denied; give credentials the way the store's own tools take them (for S3 "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role), or have "
        "their rights extended",
    ),
    (
        r"NETWORK_CONNECTION|curlCode|[Cc]onnection|[Tt]imed? ?out|resolve host",
        "the store does not answer; check the network, the endpoint and the region",
    ),
    (r"libjvm|libhdfs", "HDFS needs Java and Hadoop's client (JAVA_HOME, CLASSPATH, libhdfs.so)"),
)


class StorageError(OSError):
    """A location cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a store: path relative to the store's folder, bytes, time of change (ns; 0 =
    unknown)."""

    path: str
    size: int
    modified: int


@dataclass(frozen=True)
class Store:
    """A folder and the file system it is on. Small when pickled.

    Attributes:
        location: as the user wrote it, without options and credentials; for messages.
        filesystem: pyarrow's.
        root: the folder's path on that file system.
    """

    location: str
    filesystem: fs.FileSystem = field(repr=False)
    root: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def name_of(self, path: str) -> str:
        """A file of the folder as it is called in messages."""
        return f"{self.location.rstrip('/')}/{path}" if path else self.location

    def open_input(self, path: str) -> pa.NativeFile:
        """A file for random access, its path relative to the folder. Raises OSError."""
        with self.explaining(path):
            return self.filesystem.open_input_file(self._full(path))

    def read_bytes(self, path: str) -> bytes:
        """The whole of a small file. Raises OSError (FileNotFoundError where there is none)."""
        with self.explaining(path), self.filesystem.open_input_file(self._full(path)) as file:
            return bytes(file.read())

    def read_text(self, path: str) -> str:
        """The whole of a small text file. Raises as ``read_bytes`` does."""
        return self.read_bytes(path).decode()

    def open_output(self, path: str) -> pa.NativeFile:
        """A new file, or one in the place of an old, to write from start to end. Raises OSError.

        In an object store it appears, whole, when it is closed.
        """
        with self.explaining(path):
            if self.filesystem.type_name not in _OBJECT_STORES:
                self.filesystem.create_dir(self._full(path).rpartition("/")[0], recursive=True)
            # As it is: pyarrow would compress by the name's ending.
            return self.filesystem.open_output_stream(self._full(path), compression=None)

    def write_text(self, path: str, text: str) -> None:
        """Writes a small text file. Raises OSError."""
        with self.explaining(path), self.open_output(path) as file:
            file.write(text.encode())

    def exists(self, path: str = "") -> bool:
        """Whether there is such a file or folder. Raises OSError where that cannot be told."""
        return self._kind(path) != fs.FileType.NotFound

    def is_file(self, path: str = "") -> bool:
        """Whether it is a file."""
        return self._kind(path) == fs.FileType.File

    def files(self, pattern: str = "") -> list[StoredFile]:
        """The files that a pattern names, sorted by path.

        ``*`` and ``?`` stand for characters other than a slash, ``**`` for any number of folders;
        none of them for names that begin with a dot or an underscore, which are markers or still
        being written (``_SUCCESS``, ``_temporary/``). A pattern without wildcards names a file, or
        all files in a folder and below it.

        Raises:
            OSError: the store cannot be asked. That nothing matches is no error.
        """
        pattern = pattern.strip("/")
        if not _WILDCARDS.search(pattern):
            if self.is_file(pattern):
                info = self.filesystem.get_file_info(self._full(pattern))
                return [_stored(info, pattern)]
            pattern = f"{pattern}/**".lstrip("/")
        folder, rest = _literal_folder(pattern)
        wanted = _matcher(rest)
        return [
            found
            for found in self._below(folder, recursive="/" in rest or rest == "**")
            if wanted.fullmatch(found.path[len(folder) :].lstrip("/"))
        ]

    def names(self, path: str = "") -> list[str]:
        """Names of the files and folders directly in a folder, sorted; none if it is absent."""
        selector = fs.FileSelector(self._full(path), allow_not_found=True)
        with self.explaining(path):
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def holds_files(self) -> bool:
        """Whether there is any file in the folder or below it, whatever its name."""
        return bool(self._below("", recursive=True))

    def remove_files(self, paths: list[str]) -> None:
        """Removes files; those that are gone already do no harm. Raises OSError."""
        for path in paths:
            with self.explaining(path), suppress(FileNotFoundError):
                self.filesystem.delete_file(self._full(path))

    @contextmanager
    def explaining(self, path: str) -> Iterator[None]:
        """Turns what the file system raises into a StorageError or FileNotFoundError that names
        the file, the likely cause and the remedy."""
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            absent = FileNotFoundError(f"{self.name_of(path)}: {self._why_absent()}")
            absent.errno = error.errno
            raise absent from error
        except (OSError, pa.ArrowException) as error:
            explained = StorageError(f"{self.name_of(path)}: {reason(error)}")
            explained.errno = getattr(error, "errno", None)
            raise explained from error

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _kind(self, path: str) -> fs.FileType:
        with self.explaining(path):
            return self.filesystem.get_file_info(self._full(path)).type

    def _below(self, folder: str, recursive: bool) -> list[StoredFile]:
        selector = fs.FileSelector(self._full(folder), recursive=recursive, allow_not_found=True)
        with self.explaining(folder):
            infos = self.filesystem.get_file_info(selector)
        # Some file systems give paths with a leading slash, or with one that the root lacks.
        skip = len(self.root.strip("/")) + 1
        found = [_stored(i, i.path.lstrip("/")[skip:]) for i in infos if i.is_file]
        return sorted(found, key=lambda file: file.path)

    def _why_absent(self) -> str:
        if self.filesystem.type_name in _OBJECT_STORES:
            bucket = self.root.partition("/")[0]
            with suppress(OSError):
                if self.filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
                    return f"there is no bucket {bucket!r}; create it or correct its name"
        return "no such file or folder"


def open_store(location: str | Path) -> Store:
    """The store of a local path or a URI (``s3://bucket/folder``).

    A URI may hold credentials and, after a question mark, options of pyarrow's file system
    (``s3://bucket/folder?endpoint_override=store.example:9000&scheme=http``).

    Raises:
        StorageError: an unknown scheme or option, or a package the scheme needs is absent.
    """
    text = str(location)
    if not is_uri(text):
        return Store(text, fs.LocalFileSystem(), str(Path(text).absolute()).rstrip("/"))
    shown = mask(text).partition("?")[0]
    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" in str(error):
            return _fsspec_store(text, shown)
        # Not with the library's text or chained to it: it may hold the whole URI.
        problem = mask(str(error)).partition(": '")[0]
        raise StorageError(
            f"{shown}: no usable location ({problem}); in a URI with credentials, write / as %2F, "
            "+ as %2B and @ as %40"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{shown}: {reason(error)}") from None
    return Store(shown, filesystem, root.rstrip("/"))


def reason(error: BaseException) -> str:
    """Why a store refused, in words, then in its own without secrets."""
    text = mask(str(error)).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    for pattern, meaning in _REASONS:
        if re.search(pattern, text):
            return f"{meaning} ({text})"
    return text


def _fsspec_store(text: str, shown: str) -> Store:
    scheme = text.partition("://")[0]
    try:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise StorageError(
            f"{shown}: {scheme}:// needs a package that is not installed ({error}); install it on "
            "every node"
        ) from None
    except ValueError as error:
        raise StorageError(
            f"{shown}: no file system for {scheme}:// ({mask(str(error))}); use a local path, "
            "s3://, gs://, hdfs://, or install the fsspec package for it"
        ) from None
    handler = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    return Store(shown, handler, str(root).rstrip("/"))


def _stored(info: fs.FileInfo, path: str) -> StoredFile:
    return StoredFile(path, int(info.size or 0), int(info.mtime_ns or 0))


def _literal_folder(pattern: str) -> tuple[str, str]:
    """The folders of a pattern up to its first wildcard, and what follows them."""
    head = pattern[: _WILDCARDS.search(pattern).start()]  # type: ignore[union-attr]
    folder = head.rpartition("/")[0]
    return folder, pattern[len(folder) :].lstrip("/")


def _matcher(pattern: str) -> re.Pattern[str]:
    out = io.StringIO()
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            out.write(r"(?:[^/._][^/]*/)*" + (r"[^/._][^/]*" if last else ""))
            continue
        if part.startswith(("*", "?")):
            out.write(r"(?![._])")
        for character in part:
            out.write({"*": "[^/]*", "?": "[^/]"}.get(character, re.escape(character)))
        out.write("" if last else "/")
    return re.compile(out.getvalue())
