"""Small models to start from and to start: experiments and transforms made by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor

import ple
from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.crosses import CrossEncoder
from pipeline.data.lookup import HashLookup, IdentityLookup, KeyLookup, VocabularyLookup
from pipeline.data.numeric import NumericEncoder
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms, IdMap, bucket_name
from pipeline.model import build_ranker, tables_of
from pipeline.training.warm_start_source import WEIGHTS, WarmSource

DIM = 4
LEVEL = {"shared_experts": 2, "task_experts": 1, "hidden": [6, 5]}


def warm_experiment(
    tasks: Sequence[str | dict[str, Any]] = ("click", "buy"), **sections: Any
) -> Experiment:
    """An experiment whose data and features are of no use."""
    tree: dict[str, Any] = {
        "name": "warm",
        "data": {"path": "data"},
        "features": {"categorical": [{"name": "user"}]},
        "tasks": [{"name": task} if isinstance(task, str) else task for task in tasks],
        "model": {"levels": [LEVEL], "tower_hidden": [3]},
    }
    return parse_experiment(tree | sections)


def ids(name: str, values: Sequence[str], dim: int = DIM) -> tuple[Any, EmbeddingTable]:
    """A vocabulary of strings."""
    lookup = VocabularyLookup(pa.array(values, pa.string()))
    encoder = CategoricalEncoder(name, "vocabulary", pa.string(), False, lookup)
    return encoder, EmbeddingTable(name, name, lookup.table_rows, dim)


def numbered_ids(name: str, kind: str, rows: int, buckets: int = 2) -> tuple[Any, EmbeddingTable]:
    """Integers by hash, identity or zero_collision."""
    lookups: dict[str, Any] = {"hash": HashLookup, "identity": IdentityLookup}
    lookup = lookups.get(kind, KeyLookup)(rows)
    map_ = IdMap("frequency", 2, buckets) if kind == "zero_collision" else None
    encoder = CategoricalEncoder(name, kind, pa.int64(), False, lookup)
    return encoder, EmbeddingTable(name, name, rows, DIM, map=map_)


def crossed(name: str, columns: tuple[str, str], rows: int) -> tuple[Any, EmbeddingTable]:
    encoder = CrossEncoder(name, columns, (pa.int64(), pa.int64()), rows)
    return encoder, EmbeddingTable(name, name, rows, DIM)


def number(
    name: str, edges: Sequence[float] | None = None, flag: bool = False, **options: Any
) -> tuple[Any, EmbeddingTable | None]:
    settings = {"log1p": False, "shift": 0.0, "factor": 1.0} | options
    array = None if edges is None else np.array(edges, np.float64)
    encoder = NumericEncoder(
        name, pa.float32(), value=True, flag=flag, clip=None, edges=array, **settings
    )
    table = bucket_name(name)
    if array is None:
        return encoder, None
    return encoder, EmbeddingTable(table, table, encoder.bucket_rows, DIM)


def transforms_of(*features: tuple[Any, EmbeddingTable | None]) -> FeatureTransforms:
    """Transforms of features in this order: ids, crosses, numbers."""
    encoders = [encoder for encoder, _ in features]
    return FeatureTransforms(
        tuple(e for e in encoders if isinstance(e, CategoricalEncoder)),
        tuple(e for e in encoders if isinstance(e, NumericEncoder)),
        tuple(table for _, table in features if table is not None),
        tuple(e for e in encoders if isinstance(e, CrossEncoder)),
    )


def fresh_state(
    experiment: Experiment, transforms: FeatureTransforms, seed: int
) -> dict[str, Tensor]:
    """The state of a new ranker, every number drawn: no two weights are alike by chance."""
    ranker = build_ranker(experiment, transforms, "cpu")
    state = {name: value.clone() for name, value in ranker.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for value in state.values():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator)
            # Columns that are always zero have weight zero.
            value.copy_(torch.where(value == 0, 0.0, drawn) if value.any() else drawn)
    return state


def version_source(
    folder: Path,
    experiment: Experiment,
    transforms: FeatureTransforms,
    state: Mapping[str, Tensor],
    precision: ple.Precision = "fp32",
) -> WarmSource:
    """The weights as a registered version holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    served = ple.serving_state(state, tables_of(experiment, transforms), precision)
    save_file(served, folder / WEIGHTS)
    tasks = tuple(experiment.tasks)
    return WarmSource("source", experiment.model, tasks, transforms, str(folder), precision)


def table_weight(state: Mapping[str, Tensor], name: str) -> Tensor:
    """The rows of a table."""
    return next(v for n, v in state.items() if n.endswith(f".embedding_bags.{name}.weight"))
