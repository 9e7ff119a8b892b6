"""What the tests of this folder share: an S3 server, emptied for each, and daily log files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daily_logs import write_days
from s3_server import S3Server, behind_proxy, empty_bucket, s3_server


@pytest.fixture(scope="session")
def running_s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(running_s3: S3Server) -> S3Server:
    """A server with an empty bucket."""
    empty_bucket(running_s3)
    return running_s3


@pytest.fixture
def flaky_s3(s3: S3Server) -> Iterator[S3Server]:
    """The same behind a proxy that fails on command (``flaky_s3.proxy``)."""
    with behind_proxy(s3) as server:
        yield server


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return write_days(tmp_path / "logs")
