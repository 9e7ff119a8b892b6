"""One Ray head on loopback for all tests of submissions."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.submission.local_cluster import LocalCluster, local_cluster

# Set on the cluster's nodes alone, as a secret would be.
NODE_SECRET = "node-secret-0042"


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    environment = {"STORE_SECRET_KEY": NODE_SECRET}
    # Paths of sockets are short; pytest's folders can be too long for them.
    with (
        tempfile.TemporaryDirectory(prefix="ple-", dir="/tmp") as folder,
        local_cluster(Path(folder), head_cpus=1, environment=environment) as started,
    ):
        yield started


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that this machine and the cluster see by the same path."""
    return tmp_path
