"""The small training that faults are injected into: its rows, numbered, and its experiment.

Every training row has a number of its own and, by it, a row of its own in an embedding table. So a
batch shows which rows are in it, and the state of the table's optimizer shows which were trained.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.config.locations import inside
from pipeline.data.fitting import fit_transforms, load_statistics
from pipeline.data.manifest import Column, load_manifest
from pipeline.data.preparing.prepare import prepare
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.clicklog import ClicklogOptions, clicklog
from pipeline.data.storage import open_store
from pipeline.training.pooling import pooling_factors, save_pooling_factors

ROW = "row"
ROWS, WORKERS = 2000, 2
_BATCH = 128
# Of more than one file, and of more than one row group each.
_SHARD_ROWS, _GROUP_ROWS = 900, 256


def write_numbered_log(folder: Path, rows: int) -> None:
    """A generated click log whose rows are numbered from 0 in each split."""
    prepare(
        _numbered(clicklog(ClicklogOptions(rows=rows))),
        folder,
        rows_per_shard=_SHARD_ROWS,
        rows_per_group=_GROUP_ROWS,
    )


def small_run(data: Path, rows: int, **sections: Any) -> Experiment:
    """Two epochs with what a resume has to bring back: dropout masks, averages, moments, clipping,
    a balancing method that looks back, a place within a shuffle block.

    Args:
        data: of :func:`write_numbered_log`.
        rows: its training rows.
        sections: settings by section, added to those.
    """
    tree: dict[str, Any] = yaml.safe_load((data / "experiment.yaml").read_text())
    tree["name"] = "faults"
    tree["data"] |= {"path": str(data), "batch_size": _BATCH, "evaluation_batch_size": 64}
    tree["data"] |= {"shuffle_rows": 512, "prefetch_batches": 1}
    tree["features"]["embedding_dim"] = 4
    number = {"name": ROW, "encoder": "identity", "rows": rows}
    tree["features"]["categorical"].append(number)
    tree["model"] = {
        "levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}],
        "tower_hidden": [4],
        "expert_dropout": 0.2,
        "tower_dropout": 0.1,
    }
    tree["dense_optimizer"] = {"kind": "adamw", "ema_decay": 0.9, "clip_norm": 0.05}
    tree["balance"] = {"kind": "dwa", "every": 6}
    tree["train"] = {"epochs": 2, "evaluate_every": 7, "log_every": 2, "workers": WORKERS}
    tree["train"] |= {"threads": 1, "device": "cpu", "early_stopping": {"patience": 100}}
    tree["checkpoint"] = {"every_steps": 3, "keep_last": 3}
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return parse_experiment(tree)


def write_run_folder(folder: Path, experiment: Experiment) -> None:
    """What a driver leaves in a run folder for its workers."""
    data, dataset = experiment.data.path, inside(str(folder), "dataset")
    manifest = load_manifest(data)
    transforms = fit_transforms(experiment.features, data)
    transforms.save(inside(str(folder), "transforms"))
    manifest.save(dataset)
    # The plan of the tables goes by them.
    statistics = load_statistics(open_store(data), manifest)
    save_pooling_factors(pooling_factors(transforms, statistics, manifest.rows("train")), dataset)


def _numbered(recipe: Recipe) -> Recipe:
    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        first: dict[str, int] = {}
        for split, batch in recipe.read():
            start = first.get(split, 0)
            first[split] = start + batch.num_rows
            numbers = pa.array(np.arange(start, first[split], dtype=np.int64))
            names = [ROW, *batch.schema.names]
            yield split, pa.RecordBatch.from_arrays([numbers, *batch.columns], names=names)

    return replace(recipe, columns=(Column(ROW, "key", "int64"), *recipe.columns), read=read)
