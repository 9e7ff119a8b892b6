"""What metrics are handed on as."""

import math
from typing import Any

# Numbers by name; what cannot be computed is None, with a ``…_undefined`` entry that says why.
# ``reliability`` (a list) and ``slices`` (by column and value) hold more of them.
Metrics = dict[str, Any]


def finite_values(metrics: dict[str, Metrics]) -> dict[str, dict[str, Any]]:
    """The numbers alone, by task and metric: what can be logged as a metric."""
    return {
        task: {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        for task, values in metrics.items()
    }
