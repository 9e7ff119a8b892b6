"""A registry with two versions of the demo's model, shared by these tests."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.benchmark.served_model import DemoRegistry, demo_registry
from pipeline.registry.client import download_version
from pipeline.registry.scorer import RowScorer


@dataclass(frozen=True)
class TwoVersions:
    """Versions 1 and 2 of `demo`, with different weights; `champion` starts at 1."""

    registry: DemoRegistry
    scorers: dict[str, RowScorer]

    @property
    def client(self) -> MlflowClient:
        uri = self.registry.tracking_uri
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def move_champion(self, version: str) -> None:
        self.client.set_registered_model_alias("demo", "champion", version)

    @cached_property
    def broken(self) -> str:
        """Number of a version whose weights are cut short, registered when first asked for."""
        made = self.registry.register(seed=9)
        runs = self.registry.folder / "runs"
        (weights,) = (p for p in runs.rglob("*.safetensors") if made.model_id in str(p))
        weights.write_bytes(weights.read_bytes()[:1000])
        return made.version


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> TwoVersions:
    folder = tmp_path_factory.mktemp("demo")
    registry = demo_registry(folder, 16_384)
    scorers = {}
    for seed in (1, 2):
        made = registry.register(seed)
        path = download_version(registry.tracking_uri, made.uri, Path(folder, made.version))
        scorers[made.version] = RowScorer.load(path)
    found = TwoVersions(registry, scorers)
    found.move_champion("1")
    return found
