"""The rows an evaluation keeps beside its metrics."""

import numpy as np
import torch

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.scored_rows import RowKeeper

TASKS = [TaskConfig(name="click"), TaskConfig(name="spent", loss="squared_error")]


def test_the_first_rows_that_count_are_kept_with_their_scores() -> None:
    keeper = RowKeeper("test", TASKS, limit=3)
    weights_BT = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    predictions_BT = torch.tensor([[0.0, 7.0], [1.0, 1.0], [2.0, 8.0], [3.0, 9.0]]).double()
    labels_BT = torch.arange(8.0).view(4, 2)
    keeper.add(np.array([5, 6, 9, -1]), predictions_BT, labels_BT, weights_BT)
    assert not keeper.full
    keeper.add(np.array([2, 3, 4, 8]), predictions_BT, labels_BT, weights_BT)
    keeper.add(np.array([20, 21, 22, 23]), predictions_BT, labels_BT, weights_BT)
    assert keeper.full
    kept = keeper.kept()
    assert kept is not None
    assert kept.rows_B.tolist() == [5, 9, 2]  # neither weightless rows nor padding
    expected = [[0.5, 7.0], [1 / (1 + np.exp(-2.0)), 8.0], [0.5, 7.0]]
    np.testing.assert_allclose(kept.scores_BT, expected)
    np.testing.assert_array_equal(kept.labels_BT, [[0, 1], [4, 5], [0, 1]])
    np.testing.assert_array_equal(kept.weights_BT, [[1, 1], [0, 2], [1, 1]])


def test_without_rows_there_is_nothing() -> None:
    assert RowKeeper("test", TASKS, limit=3).kept() is None
