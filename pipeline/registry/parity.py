"""What is served is what was trained: an artifact against the trainer's own scores.

Legend: B rows, T tasks.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics.ranking import auc, classes_by_score
from pipeline.evaluation.scored_rows import ScoredRows
from pipeline.registry import fresh_scores

# Differences of a score (relative to it where it is above 1) and of an AUC.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3, "int8": 1e-3}
# Rounding to a byte has tails: so many rows must be within the tolerance, none beyond ten of it.
_SHARE_WITHIN = {"fp32": 1.0, "fp16": 1.0, "int8": 0.99}
_BEYOND = {"fp32": 1.0, "fp16": 1.0, "int8": 10.0}
_TIMEOUT_SECONDS = 600


class ParityError(ValueError):
    """The artifact does not score as the trainer did; the message names task, row, difference."""


@dataclass(frozen=True)
class Parity:
    """How close an artifact comes to the trainer.

    Attributes:
        split, rows: on what.
        tolerance: difference allowed; in int8 to 99 % of the rows, and ten times it to the rest.
        differences: largest difference of a score, by task.
        aucs: of the trainer's and of the artifact's scores, by task, where both classes occur.
    """

    split: str
    rows: int
    tolerance: float
    differences: dict[str, float]
    aucs: dict[str, tuple[float, float]]

    def values(self) -> dict[str, float]:
        """As metrics."""
        return {f"parity/{task}/difference": value for task, value in self.differences.items()}


def check_parity(
    model_folder: Path,
    tasks: Sequence[TaskConfig],
    sample: ScoredRows,
    rows: pa.Table,
    precision: str,
) -> Parity:
    """Has a fresh process score the rows with the artifact alone, and compares.

    Args:
        model_folder: the MLflow model.
        tasks: of the model, in score order.
        sample: rows with the trainer's scores.
        rows: the same rows, raw.
        precision: of the artifact's tables.

    Raises:
        ParityError: the artifact does not load without training's packages, or a score or an AUC
            differs by more than ``TOLERANCES`` allow.
    """
    scores_BT = _scores_of(model_folder, rows)
    expected_BT, tolerance = sample.scores_BT, TOLERANCES[precision]
    if scores_BT.shape != expected_BT.shape:
        raise ParityError(f"the artifact gives {scores_BT.shape} scores for {expected_BT.shape}")
    apart_BT = np.abs(scores_BT - expected_BT) / np.maximum(1.0, np.abs(expected_BT))
    # A score that is no number is as far away as can be.
    apart_BT = np.nan_to_num(apart_BT, nan=np.inf)
    row, column = divmod(int(apart_BT.argmax()), apart_BT.shape[1])
    within_T = np.quantile(apart_BT, _SHARE_WITHIN[precision], axis=0, method="lower")
    if apart_BT[row, column] > tolerance * _BEYOND[precision] or within_T.max() > tolerance:
        raise ParityError(
            f"the artifact does not score as the trainer: task {tasks[column].name!r}, row "
            f"{sample.rows_B[row]} of the {sample.split} split: {scores_BT[row, column]:.9g} "
            f"against {expected_BT[row, column]:.9g}, a difference of "
            f"{apart_BT[row, column]:.3g} where {tolerance:g} is allowed; nothing was registered. "
            + _remedy(precision)
        )
    aucs = {}
    for t, task in enumerate(tasks):
        both = _aucs(sample, scores_BT, t) if task.is_binary else None
        if both is None:
            continue
        aucs[task.name] = both[:2]
        # Scores that all but tie may change places: one pair of rows is always allowed.
        if abs(both[0] - both[1]) > tolerance + 1 / both[2]:
            raise ParityError(
                f"the artifact does not rank as the trainer: task {task.name!r} has AUC "
                f"{both[1]:.6f} against {both[0]:.6f} on {len(scores_BT)} rows of the "
                f"{sample.split} split; nothing was registered. " + _remedy(precision)
            )
    largest = dict(zip((t.name for t in tasks), apart_BT.max(0).tolist(), strict=True))
    return Parity(sample.split, len(scores_BT), tolerance, largest, aucs)


def _remedy(precision: str) -> str:
    if precision == "fp32":
        return "Training and serving do not run the same code or data: please report it"
    return f"Set artifact.table_precision to fp32, or to more than {precision}"


def _scores_of(model_folder: Path, rows: pa.Table) -> np.ndarray:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with tempfile.TemporaryDirectory(prefix="ple-parity-") as folder:
        rows_file, scores_file = Path(folder, "rows.parquet"), Path(folder, "scores.npy")
        pq.write_table(rows, rows_file)
        program = str(Path(fresh_scores.__file__).resolve())
        arguments = [str(model_folder.resolve()), str(rows_file), str(scores_file)]
        try:
            done = subprocess.run(
                [sys.executable, "-P", program, *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ParityError(
                f"the artifact did not score {rows.num_rows} rows within {_TIMEOUT_SECONDS} s; "
                "lower artifact.check_rows"
            ) from None
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ParityError(
                f"the artifact does not score in a fresh process (exit {done.returncode}): "
                f"{reason}; nothing was registered"
            )
        scores_BT: np.ndarray = np.load(scores_file)
    return scores_BT


def _aucs(sample: ScoredRows, scores_BT: np.ndarray, t: int) -> tuple[float, float, float] | None:
    """AUC of the trainer's and of the artifact's scores, and pairs; None with one class."""
    counted = sample.weights_BT[:, t] > 0
    labels, weights = sample.labels_BT[counted, t], sample.weights_BT[counted, t]
    positives = int((labels > 0.5).sum())
    pairs = positives * (labels.size - positives)
    if not pairs:
        return None
    both = [
        auc(
            *classes_by_score(
                torch.from_numpy(scores[counted, t]),
                torch.from_numpy(labels).double(),
                torch.from_numpy(weights).double(),
            )
        )
        for scores in (sample.scores_BT, scores_BT)
    ]
    return both[0], both[1], float(pairs)
