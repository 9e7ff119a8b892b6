"""One small shop, a registry with two versions of its model, and rows that can be told apart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from mlflow.tracking import MlflowClient
from scored_output import run_here, write_logs
from small_versions import SmallShop

from pipeline.config.schema import RayConfig
from pipeline.config.scoring import ScoringConfig
from pipeline.console import RunConsole
from pipeline.data.remote import RetryPolicy
from pipeline.registry.client import download_version
from pipeline.registry.scorer import RowScorer
from pipeline.scoring.score import Scored, ScoringJob, score


@dataclass(frozen=True)
class ScoringShop:
    """A registry with versions 1 (``champion``) and 2 of `shop`."""

    shop: SmallShop
    tracking_uri: str
    client: MlflowClient
    scorers: dict[str, RowScorer]

    def job(self, source: Any, output: Any, mode: Any = "new", **options: Any) -> ScoringJob:
        model = options.pop("model", "models:/shop@champion")
        config = ScoringConfig(**options)
        retry = RetryPolicy(2, 10.0)
        return ScoringJob(self.tracking_uri, model, str(source), str(output), config, retry, mode)

    def score(self, source: Any, output: Any, mode: Any = "new", **options: Any) -> Scored:
        """The job without Ray."""
        runner = options.pop("runner", run_here)
        job = self.job(source, output, mode, **options)
        return score(job, RayConfig(), RunConsole(), runner)


@pytest.fixture(scope="session")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> ScoringShop:
    folder = tmp_path_factory.mktemp("registry")
    shop = SmallShop(folder / "shop")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri, uri)
    client.create_experiment("shop", artifact_location=(folder / "artifacts").as_uri())
    scorers = {}
    for noise in (0.0, 0.4):
        version = shop.register(client, folder / "built", shop.state(noise))
        path = download_version(uri, f"models:/shop/{version}", folder / version)
        scorers[version] = RowScorer.load(path)
    client.set_registered_model_alias("shop", "champion", "1")
    return ScoringShop(shop, uri, client, scorers)


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, pa.Table]:
    return tmp_path / "logs", write_logs(tmp_path / "logs")
