"""The demo's model with fresh weights in a registry of its own: what scoring is measured on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import ple
from pipeline.config import Experiment, load_experiment
from pipeline.data.fitting import fit_transforms
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.preparing.prepare import prepare
from pipeline.data.preparing.recipes.clicklog import ClicklogOptions, clicklog
from pipeline.data.transforms import FeatureTransforms
from pipeline.model import build_ranker, build_served_ranker, tables_of
from pipeline.registry.artifact import RegisteredVersion, register_model
from pipeline.registry.scorer import feature_ids
from pipeline.registry.tracking import Tracker
from pipeline.registry.uris import tracking_uri

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
_EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class DemoRegistry:
    """A generated click log, the demo's model over it, and a SQLite registry.

    Attributes:
        experiment: the demo's, with data and storage in `folder`.
        folder: holds all of it.
    """

    experiment: Experiment
    folder: Path
    manifest: Manifest
    transforms: FeatureTransforms

    @property
    def tracking_uri(self) -> str:
        return tracking_uri(self.experiment)

    def rows(self, count: int) -> pa.Table:
        """Raw rows of the test split with the columns a model reads, in their stored types."""
        files = [self.folder / "data" / shard.path for shard in self.manifest.splits["test"]]
        rows = pa.concat_tables([pq.read_table(file) for file in files])
        assert rows.num_rows >= count, "the log has fewer test rows"
        return rows.slice(0, count).select(list(self.transforms.columns)).combine_chunks()

    def register(self, seed: int) -> RegisteredVersion:
        """A new version with weights drawn from a seed; the alias of the experiment moves to it."""
        torch.manual_seed(seed)
        state = build_ranker(self.experiment, self.transforms, "cpu").state_dict()
        with Tracker.start(self.experiment, self.manifest) as tracker:
            return register_model(
                tracker,
                self.experiment,
                self.transforms,
                self.manifest,
                state,
                {},
                self.rows(_EXAMPLE_ROWS).to_pandas(),
                0,
            )


def demo_registry(folder: Path, rows: int = 32_768) -> DemoRegistry:
    """Generates the log and fits the transforms; nothing is registered yet."""
    prepare(clicklog(ClicklogOptions(rows=rows)), folder / "data")
    overrides = [
        f"data.path={folder / 'data'}",
        f"storage.path={folder / 'runs'}",
        "mlflow.alias=champion",
    ]
    experiment = load_experiment(DEMO, overrides)
    (folder / "runs").mkdir(exist_ok=True)
    transforms = fit_transforms(experiment.features, folder / "data")
    return DemoRegistry(experiment, folder, load_manifest(folder / "data"), transforms)


def bare_model(registry: DemoRegistry, rows: int) -> Callable[[], object]:
    """One call of the served model on `rows` encoded rows that lie ready."""
    encoded = registry.transforms.encode(registry.rows(rows))
    ids, dense_BN = feature_ids(encoded), torch.from_numpy(encoded.dense_BN)
    torch.manual_seed(0)
    trained = build_ranker(registry.experiment, registry.transforms, "cpu")
    ranker = build_served_ranker(registry.experiment, registry.transforms, "fp32")
    tables = tables_of(registry.experiment, registry.transforms)
    ranker.load_state_dict(ple.serving_state(trained.state_dict(), tables), assign=True)
    ranker.eval()

    def call() -> object:
        with torch.inference_mode():
            return ranker(ids, None, dense_BN)

    return call
