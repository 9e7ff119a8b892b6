"""A first experiment for a dataset: every column a feature, every task a tower, sensible sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Experiment
from pipeline.config.locations import inside, is_uri, without_credentials
from pipeline.config.tasks import TaskConfig
from pipeline.data.collisions import PROPOSED_RATE, rows_for
from pipeline.data.manifest import Column, Manifest
from pipeline.data.storage import open_store

STARTER_NAME = "experiment.yaml"
# A vocabulary beyond this takes longer to load than the few collisions of a hash cost.
LARGEST_VOCABULARY = 1_000_000
STEPS_PER_EPOCH = 100
_HEADER = """\
# A starting point written by jobs.prepare; edit freely (--print-config shows every setting).
#   python -m jobs.train --config {path}
"""


def starter_experiment(
    tasks: Sequence[TaskConfig],
    sample_weight: str | None,
    manifest: Manifest,
    statistics: dict[str, Any],
    dataset: str | Path,
) -> dict[str, Any]:
    """The experiment as a plain tree of the settings that differ from their defaults.

    Ids use their vocabulary, or a hash where there are too many; numbers are scaled (after a
    logarithm where a few are far larger than most) and embedded by quantile bucket too.
    """
    weights = {c.weight_of: c.name for c in manifest.columns if c.weight_of is not None}
    categorical = [
        categorical_feature(c, statistics["categorical"][c.name], weights.get(c.name))
        for c in manifest.columns
        if c.role == "categorical"
    ]
    numeric = [
        _numeric(c.name, statistics["numeric"][c.name])
        for c in manifest.columns
        if c.role == "numeric"
    ]
    data: dict[str, Any] = {
        "path": _lasting(dataset),
        "batch_size": _batch_size(manifest.rows("train")),
    }
    if sample_weight is not None:
        data["sample_weight"] = sample_weight
    tree = {
        "name": manifest.name,
        "data": data,
        "features": {"embedding_dim": 16, "categorical": categorical, "numeric": numeric},
        "tasks": [t.model_dump(mode="json", exclude_defaults=True) for t in tasks],
        "model": {
            "levels": [
                {"shared_experts": 2, "task_experts": 2, "hidden": [64]},
                {"shared_experts": 2, "task_experts": 2, "hidden": [64]},
            ],
            "tower_hidden": [32],
        },
        "train": {"epochs": 3},
    }
    Experiment.model_validate(tree)
    return tree


def write_starter(tree: dict[str, Any], dataset: str | Path) -> str:
    """Writes the experiment into the dataset's folder; where it is then."""
    path = without_credentials(inside(str(dataset), STARTER_NAME))
    text = yaml.safe_dump(tree, sort_keys=False, width=100)
    shown = f"'{path}'" if "?" in path else path
    open_store(dataset).write_text(STARTER_NAME, _HEADER.format(path=shown) + text)
    return path


def _lasting(dataset: str | Path) -> str:
    """The location as it may stand in a file: absolute, without credentials."""
    if is_uri(str(dataset)):
        return without_credentials(str(dataset))
    return str(Path(dataset).resolve())


def categorical_feature(
    column: Column, seen: dict[str, Any], weights: str | None
) -> dict[str, Any]:
    """Encoder, weights and pooling of one column, from its statistics."""
    feature: dict[str, Any] = {"name": column.name}
    if seen["vocabulary"] is None or seen["distinct"] > LARGEST_VOCABULARY:
        feature |= {"encoder": "hash", "rows": rows_for(seen["distinct"], PROPOSED_RATE)}
    if weights is not None:
        feature["weights"] = weights
    elif column.is_list:
        feature["pooling"] = "mean"
    return feature


def _numeric(name: str, seen: dict[str, Any]) -> dict[str, Any]:
    feature: dict[str, Any] = {"name": name}
    quantiles = seen["quantiles"]
    median, high = quantiles[len(quantiles) // 2], quantiles[round(0.99 * (len(quantiles) - 1))]
    if seen["min"] >= 0 and high > 8 * max(median, 1.0):
        feature["transform"] = "log1p"
    buckets = min(32, len(set(quantiles)))
    if buckets >= 8:
        feature["buckets"] = buckets
    return feature


def _batch_size(train_rows: int) -> int:
    wanted = train_rows // STEPS_PER_EPOCH
    return min(max(1 << max(wanted.bit_length() - 1, 0), 64), 4096)
