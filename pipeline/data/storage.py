"""Where files live: one folder on a local disk or in an object store, behind pyarrow's interface."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs


@dataclass(frozen=True)
class Store:
    """A folder and the file system it is on.

    Attributes:
        location: as the user wrote it, for messages.
        filesystem: pyarrow's.
        root: the folder's path on that file system.
    """

    location: str
    filesystem: fs.FileSystem
    root: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def name_of(self, path: str) -> str:
        """A file of the folder as it is called in messages."""
        return f"{self.location.rstrip('/')}/{path}"

    def open_input(self, path: str) -> pa.NativeFile:
        """A file for random access, its path relative to the folder. Raises OSError."""
        return self.filesystem.open_input_file(f"{self.root}/{path}")

    def read_text(self, path: str) -> str:
        """The whole of a small file. Raises OSError (FileNotFoundError where there is none)."""
        with self.open_input(path) as file:
            return bytes(file.read()).decode()


def open_store(location: str | Path) -> Store:
    """The store of a local path or a URI (``s3://bucket/folder``).

    Credentials come from where the file system's own tools look for them.
    """
    text = str(location)
    if "://" not in text:
        return Store(text, fs.LocalFileSystem(), str(Path(text).absolute()))
    filesystem, root = fs.FileSystem.from_uri(text)
    return Store(text, filesystem, root.rstrip("/"))
