"""Mean ids per row of list features, as prepared data has them, for the sharding plan."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.storage import open_store
from pipeline.data.transforms import FeatureTransforms

_FILE = "pooling_factors.json"


def pooling_factors(
    transforms: FeatureTransforms, statistics: Mapping[str, Any], rows: int
) -> dict[str, float]:
    """Mean ids per row by list feature; all other features have one.

    Args:
        statistics: of the dataset (``statistics.json``).
        rows: of the train split, which was counted.
    """
    measured = statistics.get("categorical", {})
    factors = {}
    for encoder in transforms.categorical:
        ids = measured.get(encoder.name, {}).get("ids")
        if encoder.is_list and ids is not None and rows > 0:
            mean = ids / rows
            factors[encoder.name] = (
                mean if not encoder.max_length else min(mean, encoder.max_length)
            )
    return factors


def save_pooling_factors(factors: Mapping[str, float], folder: str | Path) -> None:
    """Leaves the factors for the workers."""
    open_store(folder).write_text(_FILE, json.dumps(dict(factors), indent=1) + "\n")


def load_pooling_factors(folder: str | Path) -> dict[str, float]:
    """The factors that were left; none where nobody counted."""
    store = open_store(folder)
    if not store.is_file(_FILE):
        return {}
    factors: dict[str, float] = json.loads(store.read_text(_FILE))
    return factors
