"""What can be computed from sums over rows: log loss, calibration, errors.

B rows of a batch, G groups of rows, T tasks, X sums.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics.rows import CleanRows
from pipeline.evaluation.metrics.values import Metrics

# `loss` serves binary tasks; all from `label_square` on the others, `pinball` quantiles, `hit`
# ordinal ones.
_SUMS = (
    "rows",
    "positives",
    "non_finite",
    "weight",
    "label",
    "score",
    "loss",
    "label_square",
    "square",
    "absolute",
    "pinball",
    "hit",
)


class TaskSums:
    """Weighted sums by group of rows and task.

    Args:
        groups: G.
        tasks: T.
    """

    def __init__(self, groups: int, tasks: int, device: torch.device | str) -> None:
        shape = (groups, tasks, len(_SUMS))
        self.sums_GTX = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, terms_BTX: Tensor, group_B: Tensor | None) -> None:
        """Adds a batch's :func:`row_terms`, to the first group or to those of ``group_B``."""
        if group_B is None:
            self.sums_GTX[0] += terms_BTX.sum(0)
        else:
            self.sums_GTX.index_add_(0, group_B, terms_BTX)

    def totals(self) -> list[list[dict[str, float]]]:
        """Sums by name, by group and task."""
        return [
            [dict(zip(_SUMS, sums, strict=True)) for sums in by_task]
            for by_task in self.sums_GTX.cpu().tolist()
        ]


def row_terms(rows: CleanRows, quantiles_T: Tensor) -> Tensor:
    """What each row adds to the sums, [B, T, X].

    Args:
        rows: the batch.
        quantiles_T: which quantile a task predicts; any number for tasks that predict none.
    """
    x_BT, y_BT, w_BT = rows.predictions_BT, rows.labels_BT, rows.weights_BT
    error_BT = rows.scores_BT - y_BT
    loss_BT = F.binary_cross_entropy_with_logits(x_BT, y_BT, reduction="none")
    terms = {
        "rows": rows.counted_BT.double(),
        "positives": (rows.counted_BT & (y_BT == 1)).double(),
        "non_finite": rows.non_finite_BT.double(),
        "weight": w_BT,
        "label": w_BT * y_BT,
        "score": w_BT * rows.scores_BT,
        "loss": w_BT * loss_BT,
        "label_square": w_BT * y_BT.square(),
        "square": w_BT * error_BT.square(),
        "absolute": w_BT * error_BT.abs(),
        "pinball": w_BT * torch.maximum((quantiles_T - 1) * -error_BT, quantiles_T * -error_BT),
        "hit": w_BT * ((rows.scores_BT + 0.5).floor() == y_BT),
    }
    return torch.stack([terms[name] for name in _SUMS], dim=2)


def one_class(total: dict[str, float]) -> str:
    """Why ranking metrics are undefined; empty where both classes are there."""
    rows, positives = int(total["rows"]), int(total["positives"])
    if rows == 0:
        return "no rows"
    if positives == 0:
        return f"no positives in {rows} rows"
    return f"no negatives in {rows} rows" if positives == rows else ""


def binary_values(total: dict[str, float]) -> Metrics:
    """Log loss, normalised entropy, calibration, and the rows behind them; ``auc`` is None yet.

    Normalised entropy is the log loss over the entropy of the base rate (He et al., 2014),
    calibration Σ w·p / Σ w·y.
    """
    rows, weight, reason = int(total["rows"]), total["weight"], one_class(total)
    result: Metrics = {"auc": None, "pr_auc": None, "logloss": None, "normalized_entropy": None}
    result |= {"calibration": None, "rows": rows, "positives": int(total["positives"])}
    result["non_finite"] = int(total["non_finite"])
    if reason:
        result |= {"auc_undefined": reason, "pr_auc_undefined": reason}
    if rows:
        result["logloss"] = total["loss"] / weight
    if total["label"] > 0:
        result["calibration"] = total["score"] / total["label"]
    else:
        result["calibration_undefined"] = reason
    base = total["label"] / weight if rows else 0.0
    if 0 < base < 1:
        entropy = -(base * math.log(base) + (1 - base) * math.log1p(-base))
        result["normalized_entropy"] = total["loss"] / weight / entropy
    else:
        result["normalized_entropy_undefined"] = reason
    return result


def regression_values(task: TaskConfig, total: dict[str, float]) -> Metrics:
    """RMSE, MAE, R² and means, and the rows behind them.

    Of a quantile q also ``pinball``, the mean of max(q·(y − x), (q − 1)·(y − x)) (Koenker and
    Bassett, 1978); of an ordinal task ``accuracy``, how often the level nearest to the score is the
    label.
    """
    rows, weight = int(total["rows"]), total["weight"]
    result: dict[str, Any] = {"rmse": None, "mae": None, "r2": None, "mean_label": None}
    result |= {"mean_score": None, "rows": rows, "non_finite": int(total["non_finite"])}
    if rows == 0:
        return result | {"rmse_undefined": "no rows", "r2_undefined": "no rows"}
    mean = total["label"] / weight
    variance = total["label_square"] / weight - mean * mean
    result["rmse"] = math.sqrt(total["square"] / weight)
    result["mae"] = total["absolute"] / weight
    result["mean_label"] = mean
    result["mean_score"] = total["score"] / weight
    if task.quantile is not None:
        result["pinball"] = total["pinball"] / weight
    if task.ordinal_range is not None:
        result["accuracy"] = total["hit"] / weight
    # A constant label leaves rounding noise of the order of 1e-16·mean², not a variance.
    if variance > 1e-12 * mean * mean:
        result["r2"] = 1.0 - total["square"] / weight / variance
    else:
        result["r2_undefined"] = f"the label is constant in {rows} rows"
    return result
