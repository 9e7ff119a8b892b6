"""From a prediction to the number a user sees; the one place that knows the link functions.

B rows of a batch, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.tasks import TaskConfig


def score(predictions_BT: Tensor, tasks: Sequence[TaskConfig]) -> Tensor:
    """Scores by task: a probability for binary tasks, the predicted value itself for others.

    Args:
        predictions_BT: what :meth:`ple.Heads.predictions` gives: logits of binary tasks, values of
            others.
        tasks: the experiment's tasks.

    Returns:
        scores_BT, same shape, type and device.
    """
    assert predictions_BT.shape[1] == len(tasks), (predictions_BT.shape, len(tasks))
    columns = [
        torch.sigmoid(column_B) if task.is_binary else column_B
        for column_B, task in zip(predictions_BT.unbind(1), tasks, strict=True)
    ]
    return torch.stack(columns, dim=1)
