"""Small experiments for these tests: `shop` on paper, `trained` with a dataset and a model."""

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from mlflow.tracking import MlflowClient

import ple
from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.data.batch import Collator, Segment
from pipeline.data.encoded import EncodedRows
from pipeline.data.fitting import fit_transforms
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Column, Manifest, Shard, load_manifest
from pipeline.data.preparing.writer import DatasetWriter
from pipeline.evaluation.scores import score
from pipeline.model import build_heads, build_ranker
from pipeline.registry.artifact import RegisteredVersion, register_model
from pipeline.registry.bundle import TrainedRanker, save_bundle
from pipeline.registry.scorer import RowScorer
from pipeline.registry.tracking import Tracker


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store: MLflow takes a second or two to make one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def shop(tmp_path: Path, new_store: Path) -> Callable[..., Experiment]:
    """Makes the experiment; keyword arguments replace whole sections."""
    (tmp_path / "runs").mkdir()
    shutil.copy(new_store, tmp_path / "runs")

    def make(**sections: Any) -> Experiment:
        tree = {
            "name": "shop",
            "data": {"path": "data/shop", "sample_weight": "importance"},
            "features": {
                "embedding_dim": 4,
                "categorical": [{"name": "user"}, {"name": "tags", "pooling": "mean"}],
                "numeric": [{"name": "price", "buckets": 4}],
            },
            "tasks": [
                {"name": "click"},
                {"name": "buy", "label": "bought", "space": "click"},
                {"name": "spent", "loss": "squared_error", "weight": 0.5},
            ],
            "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}]},
            "train": {"seed": 3},
            "storage": {"path": str(tmp_path / "runs")},
        }
        sections["mlflow"] = {"alias": "candidate"} | sections.get("mlflow", {})
        return parse_experiment(tree | sections)

    return make


@pytest.fixture
def shop_manifest() -> Manifest:
    return Manifest(
        name="shop",
        columns=(
            Column("user", "categorical", "string"),
            Column("tags", "categorical", "list<item: int64>"),
            Column("price", "numeric", "double"),
            Column("importance", "weight", "double"),
            Column("click", "label", "int8"),
            Column("bought", "label", "int8"),
            Column("spent", "label", "double"),
        ),
        splits={
            "train": (Shard("train/part-00000.parquet", (600, 400), 1, "a"),),
            "valid": (Shard("valid/part-00000.parquet", (200,), 1, "b"),),
        },
    )


@pytest.fixture
def shop_metrics() -> dict[str, dict[str, Any]]:
    return {
        "click": {"auc": 0.75, "logloss": 0.5, "normalized_entropy": 0.9, "calibration": 1.01}
        | {"rows": 200, "positives": 50, "non_finite": 0},
        "buy": {"auc": None, "auc_undefined": "no positives in 50 rows", "logloss": 0.1}
        | {"normalized_entropy": None, "calibration": None, "rows": 50, "positives": 0}
        | {"non_finite": 0},
        "spent": {"rmse": 2.0, "mae": 1.0, "r2": 0.5, "mean_label": 1.0, "mean_score": 1.1}
        | {"rows": 200, "non_finite": 0},
    }


COLUMNS = {
    "user": ("categorical", pa.string()),
    "item": ("categorical", pa.int64()),
    "visitor": ("categorical", pa.int64()),
    "shelf": ("categorical", pa.string()),
    "tags": ("categorical", pa.list_(pa.int64())),
    "words": ("categorical", pa.list_(pa.string())),
    "relevance": ("weight", pa.list_(pa.float64())),
    "price": ("numeric", pa.float64()),
    "age": ("numeric", pa.int64()),
    "click": ("label", pa.int8()),
    "spent": ("label", pa.float64()),
}


class TrainedShop:
    """A ranker over every kind of column, with fresh weights, and the dataset behind it."""

    step = 40
    metrics: ClassVar[dict[str, dict[str, Any]]] = {
        "test": {
            "click": {"auc": 0.75, "rows": 200, "positives": 50},
            "spent": {"rmse": 2.0, "r2": None, "r2_undefined": "the label is constant"}
            | {"rows": 200},
        }
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prepare()
        self.experiment = self.configured(storage={"path": str(folder / "runs")})
        self.manifest = load_manifest(folder / "data")
        self.transforms = fit_transforms(self.experiment.features, folder / "data")
        torch.manual_seed(1)
        self.ranker = build_ranker(self.experiment, self.transforms, "cpu")
        self._learn_ids()

    @cached_property
    def scorer(self) -> RowScorer:
        """The bundle of this model, loaded."""
        save_bundle(self.folder / "bundle", self.trained())
        return RowScorer.load(self.folder / "bundle")

    def configured(self, **sections: Any) -> Experiment:
        categorical = [
            {"name": "user"},
            {"name": "item", "encoder": "hash", "rows": 64},
            {"name": "visitor", "encoder": "zero_collision", "rows": 32, "map_buckets": 4}
            | {"eviction_interval": 2},
            {"name": "tags", "pooling": "mean", "max_length": 3},
            {"name": "words", "weights": "relevance"},
        ]
        crosses = [
            {"name": "user_item", "columns": ["user", "item"], "rows": 300},
            {"name": "item_shelf", "columns": ["item", "shelf"], "rows": 200, "dim": 3},
        ]
        numeric = [{"name": "price", "buckets": 8}, {"name": "age", "transform": "log1p"}]
        level = {"shared_experts": 1, "task_experts": 1, "hidden": [8]}
        tree = {
            "name": "shop/ranker",
            "data": {"path": str(self.folder / "data")},
            "features": {"embedding_dim": 4, "categorical": categorical, "numeric": numeric}
            | {"crosses": crosses},
            "tasks": [{"name": "click"}, {"name": "spent", "loss": "squared_error"}],
            "model": {"levels": [level, level], "input_dropout": 0.5},
        }
        sections["mlflow"] = {"model_name": "shop.ranker", "alias": "candidate"} | sections.get(
            "mlflow", {}
        )
        return parse_experiment(tree | sections)

    def trained(self) -> TrainedRanker:
        state = self.ranker.state_dict()
        return TrainedRanker(self.experiment, self.transforms, self.manifest, state, self.step)

    def register(self, tracker: Tracker, experiment: Experiment) -> RegisteredVersion:
        return register_model(
            tracker,
            experiment,
            self.transforms,
            self.manifest,
            self.ranker.state_dict(),
            self.metrics,
            self.raw_rows(3, 7).to_pandas(),
            self.step,
        )

    def raw_rows(self, count: int, seed: int) -> pa.Table:
        rng = np.random.default_rng(seed)
        words = [[f"w{i}" for i in rng.integers(0, 9, n)] for n in rng.integers(0, 4, count)]
        tags = [rng.integers(0, 20, n).tolist() for n in rng.integers(0, 5, count)]
        rows = {
            "user": [f"u{i}" if i else None for i in rng.integers(0, 30, count)],
            "item": [int(i) if i else None for i in rng.integers(0, 500, count)],
            "tags": [t or None for t in tags],
            "words": words,
            "relevance": [rng.random(len(w)).tolist() for w in words],
            "price": [float(x) if x > -1 else None for x in rng.normal(size=count)],
            "age": [int(i) if i > 20 else None for i in rng.integers(18, 90, count)],
            "click": rng.integers(0, 2, count).tolist(),
            "spent": rng.random(count).tolist(),
            "visitor": rng.integers(0, 60, count),
            "shelf": [f"s{i}" if i else None for i in rng.integers(0, 9, count)],
        }
        return pa.table(rows, schema=pa.schema([(n, kind) for n, (_, kind) in COLUMNS.items()]))

    @torch.no_grad()
    def scores_in_training(
        self, experiment: Experiment, ranker: ple.Ranker, rows: pa.Table
    ) -> np.ndarray:
        """Float64 scores by task as training computes them: KeyedJaggedTensors, TorchRec tables."""
        features = self.transforms.encode(rows)
        none_BT = np.empty((rows.num_rows, 0), np.float32)
        collate = Collator(self.transforms, tasks=0, batch_rows=rows.num_rows)
        encoded = EncodedRows(features, none_BT, none_BT)
        batch = collate([Segment(encoded, 0, rows.num_rows, at=0)], cursor={})
        outputs_BO = ranker.eval()(batch.ids, batch.weighted_ids, batch.dense_BN)
        predictions_BT = build_heads(experiment.tasks).predictions(outputs_BO.double())
        scores_BT: np.ndarray = score(predictions_BT, experiment.tasks).numpy()
        return scores_BT

    def trainer_scores(self, split: str) -> dict[float, tuple[float, float]]:
        """``spent`` label → scores of the row, batched, padded and shuffled as for training."""
        scores = {}
        for batch in self._loader(split).epoch(0):
            with torch.no_grad():
                logits_BT = self.ranker(batch.ids, batch.weighted_ids, batch.dense_BN)
            real_B = batch.weights_BT[:, 1] > 0
            labels = batch.labels_BT[real_B, 1].tolist()
            click = torch.sigmoid(logits_BT[real_B, 0]).tolist()
            scores |= dict(
                zip(labels, zip(click, logits_BT[real_B, 1].tolist(), strict=True), strict=True)
            )
        return scores

    @torch.no_grad()
    def _learn_ids(self) -> None:
        """Passes rows in training mode, in which ids get their rows, and gives those weights."""
        for batch in self._loader("train").epoch(0):
            self.ranker(batch.ids, batch.weighted_ids, batch.dense_BN)
        self.ranker.eval()
        for name, weight in self.ranker.named_parameters():
            if "visitor" in name:
                weight.normal_()

    def _loader(self, split: str) -> BatchLoader:
        return BatchLoader(
            folder=self.folder / "data",
            manifest=self.manifest,
            split=split,
            transforms=self.transforms,
            tasks=self.experiment.tasks,
            sample_weight=None,
            batch_size=64,
            streams=4,
            shuffle_rows=128,
            seed=1,
        )

    def _prepare(self) -> None:
        columns = [
            Column(n, role, str(kind), "words" if n == "relevance" else None)
            for n, (role, kind) in COLUMNS.items()
        ]
        with DatasetWriter(self.folder / "data", "shop", columns) as writer:
            for split, count in (("train", 900), ("valid", 200), ("test", 200)):
                for batch in self.raw_rows(count, count).to_batches():
                    writer.write(split, batch)
            writer.finish({})


@pytest.fixture(scope="session")
def trained_with(trained: TrainedShop) -> Callable[[dict[str, Any]], TrainedRanker]:
    """A model over other features of the same data, with fresh weights."""

    def make(features: dict[str, Any]) -> TrainedRanker:
        experiment = trained.configured(features=features)
        transforms = fit_transforms(experiment.features, trained.folder / "data")
        torch.manual_seed(3)
        state = build_ranker(experiment, transforms, "cpu").state_dict()
        return TrainedRanker(experiment, transforms, trained.manifest, state, 0)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedShop:
    return TrainedShop(tmp_path_factory.mktemp("trained"))
