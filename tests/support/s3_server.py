"""A real S3 server on loopback (moto's), for the tests that read and write an object store."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock
from urllib.parse import quote

from flaky_proxy import FlakyProxy, flaky_proxy
from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "ranking-logs"
# Shaped like the real thing, so that a test can look for it where it must not be.
ACCESS_KEY, SECRET_KEY = "AKIATESTKEY0001", "fakeSecret/+0042"


@dataclass(frozen=True)
class S3Server:
    """A running server with one empty bucket, ``BUCKET``.

    Attributes:
        address: ``host:port``, of the server or of the proxy in front of it.
        proxy: what stands between the tests and the server, if anything does.
    """

    address: str
    proxy: FlakyProxy | None = None

    def uri(self, path: str, credentials: bool = False) -> str:
        """``s3://BUCKET/path`` with the server's address in it, and the credentials if asked."""
        user = f"{ACCESS_KEY}:{quote(SECRET_KEY, safe='')}@" if credentials else ""
        return f"s3://{user}{BUCKET}/{path}?endpoint_override={self.address}&scheme=http"

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs to reach the server by ``s3://BUCKET/…`` alone."""
        return {**_credentials(), "AWS_ENDPOINT_URL": f"http://{self.address}"}

    @property
    def filesystem(self) -> fs.S3FileSystem:
        """The server as pyarrow sees it, for arranging and checking."""
        return fs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            endpoint_override=self.address,
            scheme="http",
            allow_bucket_creation=True,
            allow_bucket_deletion=True,
        )

    def files(self, folder: str = "") -> list[str]:
        """Paths of the bucket's files under a folder, relative to it, sorted."""
        base = f"{BUCKET}/{folder}".rstrip("/")
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(f.path.removeprefix(base + "/") for f in found if f.is_file)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Starts a server on a free port; credentials come from the environment meanwhile."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with mock.patch.dict(os.environ, _credentials()):
        server.start()
        try:
            host, port = server.get_host_and_port()
            found = S3Server(f"{host}:{port}")
            found.filesystem.create_dir(BUCKET)
            # Servers of one process share their buckets, the ended ones too.
            empty_bucket(found)
            yield found
        finally:
            server.stop()


@contextmanager
def behind_proxy(server: S3Server) -> Iterator[S3Server]:
    """The same server reached through a proxy that fails on command."""
    with flaky_proxy(server.address) as proxy:
        yield S3Server(proxy.address, proxy)


def empty_bucket(server: S3Server) -> None:
    """Removes every file of the bucket."""
    server.filesystem.delete_dir_contents(BUCKET)


def _credentials() -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        # Without this an absent bucket or key is first looked for on a cloud machine's network.
        "AWS_EC2_METADATA_DISABLED": "true",
    }
