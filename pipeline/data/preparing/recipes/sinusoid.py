"""Two regression tasks of a chosen correlation: the synthetic data of the MMoE and PLE papers.

With orthonormal u₁, u₂ in R^d and x standard normal, w₁ = c·u₁ and w₂ = c·(p·u₁ + √(1-p²)·u₂);
y_k = w_kᵀx + Σ_i sin(α_i·w_kᵀx + β_i) + ε. The cosine of the two weight vectors is p.

J. Ma et al.: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts. KDD 2018, section 3.2. The papers leave α, β, c and ε open; here they are drawn
from the seed, c = 1, and ε has deviation 0.01.

Shapes: B rows, D inputs, T = 2 tasks, W waves.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import SPLITS, Column, DatasetError
from pipeline.data.preparing.recipes.base import Blocks, Recipe

BLOCK_ROWS = 8_192
_WAVES = 10
_NOISE = 0.01


def sinusoid(rows: int, correlation: float, dimensions: int, seed: int) -> Recipe:
    """The synthetic regression as a recipe.

    Args:
        rows: train rows; the other splits have an eighth as many.
        correlation: p, 0 … 1.
        dimensions: d, number columns x_1 … x_d.
        seed: everything random follows from it.
    """
    if not 0 <= correlation <= 1:
        raise DatasetError(f"--correlation {correlation}: must lie in 0 … 1")
    if rows < 8 or dimensions < 2:
        raise DatasetError("--rows must be 8 or more, --dimensions 2 or more")
    random = np.random.default_rng([seed, 0x51E5])
    basis, _ = np.linalg.qr(random.standard_normal((dimensions, 2)))
    second = correlation * basis[:, 0] + np.sqrt(1 - correlation**2) * basis[:, 1]
    weights_DT = np.stack([basis[:, 0], second], axis=1)
    speed_W = random.uniform(0.5, 4.0, _WAVES)
    phase_W = random.uniform(0, 2 * np.pi, _WAVES)
    blocks = Blocks({"train": rows, "valid": rows // 8, "test": rows // 8}, BLOCK_ROWS)
    names = [f"x_{number}" for number in range(1, dimensions + 1)]
    labels = ("first", "second")

    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        for split, number, count in blocks:
            draw = np.random.default_rng([seed, SPLITS.index(split), number])
            x_BD = draw.standard_normal((BLOCK_ROWS, dimensions), np.float32)
            linear_BT = x_BD @ weights_DT
            y_BT = linear_BT + np.sin(linear_BT[..., None] * speed_W + phase_W).sum(-1)
            y_BT += _NOISE * draw.standard_normal(y_BT.shape)
            arrays = [pa.array(x_BD[:count, d].copy()) for d in range(dimensions)]
            arrays += [pa.array(y_BT[:count, t].astype(np.float32)) for t in range(2)]
            yield split, pa.RecordBatch.from_arrays(arrays, [*names, *labels])

    return Recipe(
        name="sinusoid",
        columns=(
            *(Column(name, "numeric", "float") for name in names),
            *(Column(label, "label", "float") for label in labels),
        ),
        tasks=tuple(TaskConfig(name=label, loss="squared_error") for label in labels),
        read=read,
        share=blocks.share,
        source={
            "recipe": "sinusoid",
            "rows": rows,
            "correlation": correlation,
            "dimensions": dimensions,
            "seed": seed,
        },
    )
