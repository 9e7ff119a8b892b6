"""From a tower's output to the number a user sees; the one place that knows the link functions.

B rows of a batch, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.tasks import TaskConfig

BINARY = "binary_cross_entropy"


def score(logits_BT: Tensor, tasks: Sequence[TaskConfig]) -> Tensor:
    """Scores by task: a probability for binary cross-entropy, the output itself for squared error.

    Args:
        logits_BT: tower outputs, columns in the order of `tasks`.
        tasks: the experiment's tasks.

    Returns:
        scores_BT, same shape, type and device.
    """
    assert logits_BT.shape[1] == len(tasks), (logits_BT.shape, len(tasks))
    columns = [
        torch.sigmoid(column_B) if task.loss == BINARY else column_B
        for column_B, task in zip(logits_BT.unbind(1), tasks, strict=True)
    ]
    return torch.stack(columns, dim=1)
