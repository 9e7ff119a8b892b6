"""A small click log over a few days, and versions of a model on it: real artifacts of a ranker that
is fitted in a few steps, some of them with noise on the weights, registered in no time."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mlflow.tracking import MlflowClient

from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.data.fitting import fit_transforms
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Column, load_manifest
from pipeline.data.preparing.writer import DatasetWriter
from pipeline.model import build_ranker
from pipeline.registry.bundle import TrainedRanker, save_bundle
from pipeline.registry.reference import fit_reference

NAME = "shop"
COLUMNS = {
    "user": ("categorical", pa.string()),
    "device": ("categorical", pa.string()),
    "tags": ("categorical", pa.list_(pa.int64())),
    "price": ("numeric", pa.float64()),
    "click": ("label", pa.int8()),
    "buy": ("label", pa.int8()),
    "spent": ("label", pa.float64()),
    "day": ("key", pa.string()),
}
DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")


def log_rows(count: int, seed: int, shift: float = 0.0, day: str = DAYS[0]) -> pa.Table:
    """Rows of one day; `shift` moves the prices."""
    random = np.random.default_rng(seed)
    price = random.normal(shift, 1.0, count)
    user = random.integers(0, 40, count)
    taste = np.sin(user)
    click = random.random(count) < 1 / (1 + np.exp(-(1.2 * price + taste - 0.5)))
    buy = click & (random.random(count) < 1 / (1 + np.exp(-(price - taste))))
    device = random.choice(["phone", "desk", "tv"], count, p=[0.6, 0.3, 0.1])
    tags = [random.integers(0, 9, n).tolist() for n in random.integers(0, 3, count)]
    missing = random.random(count) < 0.02
    return pa.table(
        {
            "user": [f"u{i}" for i in user],
            "device": device.tolist(),
            "tags": [t or None for t in tags],
            "price": [None if m else float(p) for p, m in zip(price, missing, strict=True)],
            "click": click.astype(np.int8),
            "buy": pa.array(buy.astype(np.int8)),
            "spent": np.maximum(price, 0) + random.normal(0, 0.1, count),
            "day": [day] * count,
        },
        schema=pa.schema([(name, kind) for name, (_, kind) in COLUMNS.items()]),
    )


class SmallShop:
    """A dataset, a fitted model, and versions of it in any registry.

    Attributes:
        folder: holds ``data`` (prepared: train, valid, test) and ``logs/dt=DAY`` (files by day).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prepare()
        self.manifest = load_manifest(folder / "data")
        self.experiment = self.configured()
        self.transforms = fit_transforms(self.experiment.features, folder / "data")
        torch.manual_seed(3)
        self.ranker = build_ranker(self.experiment, self.transforms, "cpu")
        self.fresh = {k: v.clone() for k, v in self.ranker.state_dict().items()}
        self._fit()
        self.fitted = {k: v.clone() for k, v in self.ranker.state_dict().items()}

    def tree(self, **sections: Any) -> dict[str, Any]:
        level = {"shared_experts": 1, "task_experts": 1, "hidden": [8]}
        tree: dict[str, Any] = {
            "name": NAME,
            "data": {"path": str(self.folder / "data")},
            "features": {
                "embedding_dim": 4,
                "categorical": [{"name": n} for n in ("user", "device", "tags")],
                "numeric": [{"name": "price"}],
            },
            "tasks": [
                {"name": "click"},
                {"name": "buy", "space": "click"},
                {"name": "spent", "loss": "squared_error"},
            ],
            "model": {"levels": [level]},
            "storage": {"path": str(self.folder / "runs")},
        }
        return tree | sections

    def configured(self, **sections: Any) -> Experiment:
        return parse_experiment(self.tree(**sections))

    def state(self, noise: float = 0.0, seed: int = 0) -> dict[str, torch.Tensor]:
        """Fitted weights, with noise relative to the size of each."""
        random = torch.Generator().manual_seed(seed)
        return {
            name: value + noise * value.abs().mean() * torch.randn(value.shape, generator=random)
            if value.is_floating_point()
            else value
            for name, value in self.fitted.items()
        }

    def bundle(
        self, folder: Path, state: dict[str, torch.Tensor], experiment: Experiment | None = None
    ) -> Path:
        """Writes the files of an artifact; returns its folder."""
        trained = TrainedRanker(
            experiment or self.experiment, self.transforms, self.manifest, state, 10
        )
        place = folder / "artifacts" / "bundle"
        save_bundle(place, trained)
        fit_reference(self.manifest, trained.columns, self.folder / "data").save(place)
        return folder

    def register(
        self,
        client: MlflowClient,
        folder: Path,
        state: dict[str, torch.Tensor],
        name: str = NAME,
        experiment: Experiment | None = None,
    ) -> str:
        """Registers a version with an artifact of its own; returns its number."""
        known = client.get_experiment_by_name("shop")
        place = known.experiment_id if known else client.create_experiment("shop")
        run = client.create_run(place)
        model = self.bundle(folder / run.info.run_id, state, experiment)
        client.log_artifacts(run.info.run_id, str(model), "model")
        shutil.rmtree(model)
        if not any(m.name == name for m in client.search_registered_models()):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/model"
        created = client.create_model_version(name, source, run.info.run_id)
        return str(created.version)

    def _prepare(self) -> None:
        columns = [Column(n, role, str(kind)) for n, (role, kind) in COLUMNS.items()]
        with DatasetWriter(self.folder / "data", NAME, columns) as writer:
            for split, count, seed in (("train", 4000, 1), ("valid", 200, 2), ("test", 6000, 3)):
                for batch in log_rows(count, seed).to_batches():
                    writer.write(split, batch)
            writer.finish({})
        for number, day in enumerate(DAYS):
            place = self.folder / "logs" / f"dt={day}"
            place.mkdir(parents=True)
            rows = log_rows(1500, 10 + number, shift=0.7 * number, day=day)
            pq.write_table(rows.slice(0, 700), place / "a.parquet", row_group_size=300)
            pq.write_table(rows.slice(700), place / "b.parquet")

    def _fit(self) -> None:
        """Some steps of Adam on all weights, which is enough for a good AUC here."""
        loader = BatchLoader(
            folder=self.folder / "data",
            manifest=self.manifest,
            split="train",
            transforms=self.transforms,
            tasks=self.experiment.tasks,
            sample_weight=None,
            batch_size=256,
            streams=4,
            shuffle_rows=1024,
            seed=1,
        )
        optimizer = torch.optim.Adam(self.ranker.parameters(), lr=0.02)
        for epoch in range(8):
            for batch in loader.epoch(epoch):
                outputs = self.ranker(batch.ids, batch.weighted_ids, batch.dense_BN)
                binary = torch.nn.functional.binary_cross_entropy_with_logits(
                    outputs[:, :2], batch.labels_BT[:, :2], batch.weights_BT[:, :2], reduction="sum"
                )
                error = (outputs[:, 2] - batch.labels_BT[:, 2]).square() * batch.weights_BT[:, 2]
                optimizer.zero_grad()
                ((binary + error.sum()) / batch.rows).backward()
                optimizer.step()
        self.ranker.eval()
