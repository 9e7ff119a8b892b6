"""A small experiment and manifest for the tests of this folder."""

from pipeline.config.load import parse_experiment
from pipeline.data.manifest import Column, Manifest, Shard


def sample_experiment(storage, **sections):
    """Two tasks over a few features; `sections` replace whole sections of the tree."""
    tree = {
        "name": "shop",
        "data": {"path": "data/shop", "sample_weight": "importance"},
        "features": {
            "embedding_dim": 4,
            "categorical": [{"name": "user", "min_count": 1}, {"name": "tags", "pooling": "mean"}],
            "numeric": [{"name": "price", "buckets": 4}],
        },
        "tasks": [
            {"name": "click"},
            {"name": "buy", "label": "bought", "space": "click"},
            {"name": "spent", "loss": "squared_error", "weight": 0.5},
        ],
        "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}]},
        "train": {"seed": 3},
        "storage": {"path": str(storage)},
    }
    return parse_experiment(tree | sections)


def sample_manifest():
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


METRICS = {
    "click": {"auc": 0.75, "logloss": 0.5, "normalized_entropy": 0.9, "calibration": 1.01}
    | {"rows": 200, "positives": 50, "non_finite": 0},
    "buy": {"auc": None, "auc_undefined": "no positives in 50 rows", "logloss": 0.1}
    | {"normalized_entropy": None, "calibration": None, "rows": 50, "positives": 0}
    | {"non_finite": 0},
    "spent": {"rmse": 2.0, "mae": 1.0, "r2": 0.5, "mean_label": 1.0, "mean_score": 1.1}
    | {"rows": 200, "non_finite": 0},
}
