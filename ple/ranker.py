"""The whole ranking model: embeddings, extraction, towers.

Shape suffixes: B rows, T tasks, N dense columns, D width of the feature vector, E experts.
"""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ple.embeddings import FeatureEmbeddings
from ple.extraction import LevelSpec, ProgressiveExtraction
from ple.layers import check_dropout
from ple.towers import Towers

# Matrix products are fastest when the width is a multiple of this (cache lines, tensor cores).
WIDTH_MULTIPLE = 64


class Ranker(nn.Module):
    """Scores rows for every task: feature vector, PLE, one tower per task.

    The feature vector is the pooled embeddings in table order, then the dense columns, then columns
    that are always zero up to the next multiple of :data:`WIDTH_MULTIPLE`.

    Args:
        embeddings: the categorical features; None for a model of dense columns only.
        dense_width: N, number of dense columns; may be 0 where there are embeddings.
        levels: the extraction networks, first first.
        tower_hidden: hidden widths of each task's tower, in task order.
        activation: of experts, gates' hidden layers and towers: relu, silu or gelu.
        normalization: inside experts, before each activation: none or layer.
        input_dropout: rate on the feature vector.
        expert_dropout: rate after each activation of an expert.
        tower_dropout: rate after each hidden activation of a tower.

    Raises:
        ValueError: the parts do not fit together; the message says which and what to change.
    """

    def __init__(
        self,
        embeddings: FeatureEmbeddings | None,
        dense_width: int,
        levels: Sequence[LevelSpec],
        tower_hidden: Sequence[Sequence[int]],
        activation: str = "relu",
        normalization: str = "none",
        input_dropout: float = 0.0,
        expert_dropout: float = 0.0,
        tower_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_dropout("input_dropout", input_dropout)
        signal = (0 if embeddings is None else embeddings.width) + dense_width
        if signal == 0:
            raise ValueError("the model has no features: no embeddings and no dense columns")
        self.embeddings = embeddings
        self.dense_width = dense_width
        self.input_dropout = input_dropout
        self.padding = -signal % WIDTH_MULTIPLE
        self.extraction = ProgressiveExtraction(
            levels, signal + self.padding, activation, normalization, expert_dropout, signal
        )
        if len(tower_hidden) != self.extraction.tasks:
            raise ValueError(
                f"{len(tower_hidden)} towers for {self.extraction.tasks} tasks;"
                " `tower_hidden` needs one list of widths per task"
            )
        self.towers = Towers(self.extraction.out_width, tower_hidden, activation, tower_dropout)

    @overload
    def forward(
        self,
        ids: KeyedJaggedTensor | None,
        weighted_ids: KeyedJaggedTensor | None,
        dense_BN: Tensor,
        return_gates: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        ids: KeyedJaggedTensor | None,
        weighted_ids: KeyedJaggedTensor | None,
        dense_BN: Tensor,
        return_gates: Literal[True],
    ) -> tuple[Tensor, list[list[Tensor]]]: ...

    def forward(
        self,
        ids: KeyedJaggedTensor | None,
        weighted_ids: KeyedJaggedTensor | None,
        dense_BN: Tensor,
        return_gates: bool = False,
    ) -> Tensor | tuple[Tensor, list[list[Tensor]]]:
        """Logits [B, T]; a binary task's score is their sigmoid.

        Args:
            ids, weighted_ids: see :meth:`ple.embeddings.FeatureEmbeddings.forward`.
            dense_BN: dense columns; [B, 0] if there are none.
            return_gates: also return the gate weights, detached, since they are for looking at:
                a list per level of a list per stream (tasks in order, then the shared one where
                the level has a shared gate) of [B, E]. Experts of a task gate: the task's own,
                then the shared ones; of a shared gate: task 0's, task 1's, …, the shared ones.
        """
        x_BD = self.features(ids, weighted_ids, dense_BN)
        if self.input_dropout:
            x_BD = F.dropout(x_BD, self.input_dropout, self.training)
        streams_TBD, gates = self.extraction(x_BD)
        logits_BT = self.towers(streams_TBD)
        if not return_gates:
            return logits_BT
        return logits_BT, [[gate_BE.detach() for gate_BE in level] for level in gates]

    def features(
        self,
        ids: KeyedJaggedTensor | None,
        weighted_ids: KeyedJaggedTensor | None,
        dense_BN: Tensor,
    ) -> Tensor:
        """The feature vector [B, D], before dropout."""
        if dense_BN.shape[1] != self.dense_width:
            raise ValueError(
                f"the batch has {dense_BN.shape[1]} dense columns, the model {self.dense_width}"
            )
        pieces = [] if self.embeddings is None else self.embeddings.pieces(ids, weighted_ids)
        pieces += [dense_BN] if self.dense_width else []
        pieces += [dense_BN.new_zeros(len(dense_BN), self.padding)] if self.padding else []
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
