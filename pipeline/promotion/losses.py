"""What a task is compared by besides its AUC: one proper loss per kind of label.

n rows.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics import Metrics
from pipeline.promotion.bootstrap import RankedRows

# Rows of the terms that :func:`terms` gives.
LOSS, SCORE, LABEL, CHAMPION_LOSS = range(4)


def is_probability(task: TaskConfig) -> bool:
    """Whether a binary task's score claims to be a probability of the data as it is."""
    distorted = (task.positive_weight, task.focal_gamma, task.label_smoothing)
    return task.is_binary and not any(distorted)


def loss_name(task: TaskConfig) -> str:
    """Which loss versions are compared by."""
    if task.is_binary:
        return "log loss"
    return "pinball loss" if task.quantile is not None else "squared error"


def loss_value(task: TaskConfig, metrics: Metrics) -> float | None:
    """That loss, from metrics over all rows."""
    if task.is_binary:
        value = metrics.get("logloss")
    elif task.quantile is not None:
        value = metrics.get("pinball")
    else:
        value = None if metrics.get("rmse") is None else metrics["rmse"] ** 2
    return None if value is None else float(value)


def terms(
    task: TaskConfig, predictions: Sequence[np.ndarray], labels_n: np.ndarray, weights_n: np.ndarray
) -> np.ndarray:
    """Weighted loss, score and label of the candidate, and the champion's loss if it is there."""
    own_n = predictions[0]
    scores_n = 0.5 * (1.0 + np.tanh(0.5 * own_n)) if task.is_binary else own_n
    rows = [row_losses(task, own_n, labels_n), scores_n, labels_n]
    rows += [row_losses(task, predictions_n, labels_n) for predictions_n in predictions[1:]]
    return np.stack(rows) * weights_n


def row_losses(task: TaskConfig, predictions_n: np.ndarray, labels_n: np.ndarray) -> np.ndarray:
    """The loss of each row; predictions of binary tasks are logits."""
    if task.is_binary:
        # log(1 + e^x) − y·x, without overflow.
        losses_n: np.ndarray = np.logaddexp(0.0, predictions_n) - labels_n * predictions_n
        return losses_n
    error_n = labels_n - predictions_n
    if task.quantile is not None:
        return np.maximum(task.quantile * error_n, (task.quantile - 1) * error_n)
    return np.square(error_n)


def ranked(
    task: TaskConfig,
    rows_n: np.ndarray,
    predictions: Sequence[np.ndarray],
    labels_n: np.ndarray,
    weights_n: np.ndarray,
) -> tuple[RankedRows, ...]:
    """The rows ranked by each version, where labels are classes and both are there."""
    if not task.is_binary or not 0 < (labels_n == 1).sum() < len(labels_n):
        return ()
    return tuple(RankedRows(rows_n, p_n, labels_n, weights_n) for p_n in predictions)
