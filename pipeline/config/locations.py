"""Locations as a user writes them: local paths and URIs, and texts without the secrets in them."""

import re
from pathlib import Path

from pyarrow import fs

# Up to the last @, because a secret pasted without escaping may hold slashes and more.
_USER_AND_PASSWORD = re.compile(r"""(\w[\w+.-]*://)(?:[^\s'"]*:[^\s'"]*|[^/@\s'"]+)@""")
_SECRET_OPTION = re.compile(
    r"""([?&][^=&\s'"]*(?:key|secret|token|password|signature|sig)=)[^&\s'"]+""", re.IGNORECASE
)


def is_uri(location: str) -> bool:
    """Whether a location names its file system (``s3://…``), rather than being a local path."""
    return "://" in location


def mask(text: str) -> str:
    """The text with what is secret in its URIs (user, password, tokens) replaced by ``***``."""
    return _SECRET_OPTION.sub(r"\1***", _USER_AND_PASSWORD.sub(r"\1***@", text))


def without_credentials(location: str) -> str:
    """The same location without user and password: they are then looked for elsewhere."""
    if not is_uri(location):
        return location
    scheme, _, rest = location.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def inside(folder: str, path: str) -> str:
    """A path inside a folder, in front of the options that the folder's URI may end in."""
    if not is_uri(folder):
        return str(Path(folder) / path)
    base, mark, options = folder.partition("?")
    return f"{base.rstrip('/')}/{path}{mark}{options}"


def read_text(location: str | Path) -> str:
    """The text of a small file: a local path, or a URI of a file system that pyarrow knows.

    Raises:
        OSError, pyarrow.ArrowInvalid: it cannot be read.
    """
    text = str(location)
    if not is_uri(text):
        return Path(text).read_text()
    filesystem, path = fs.FileSystem.from_uri(text)
    with filesystem.open_input_file(path) as file:
        return bytes(file.read()).decode()
