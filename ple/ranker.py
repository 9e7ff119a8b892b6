"""The whole ranking model: embeddings, extraction, towers.

Shape suffixes: B rows, T tasks, N dense columns, D width of the feature vector, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.extraction import ExpertOptions, Extraction
from ple.interaction import LowRankCross
from ple.kinds import wire
from ple.layers import check_dropout
from ple.serving_tables import FeatureIds, ServingTables
from ple.towers import Towers
from ple.wiring import LevelSpec, Output, expert_names, owner_name

if TYPE_CHECKING:  # A served model has plain tables, and no TorchRec beside it.
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from ple.embeddings import FeatureEmbeddings
    from ple.started_ids import StartedIds

# Matrix products are fastest when the width is a multiple of this (cache lines, tensor cores).
WIDTH_MULTIPLE = 16

# From the outputs and the boundary (see Ranker.forward) to whatever the caller wants.
Objective = Callable[[Tensor, Mapping[str, list[Tensor]]], Any]


@dataclass(frozen=True)
class CrossSpec:
    """Crosses of features before level 1, see :class:`ple.interaction.LowRankCross`."""

    layers: int
    rank: int


class Ranker(nn.Module):
    """Scores rows for every task: feature vectors, experts and gates, one tower per task.

    A feature vector is the pooled embeddings in table order, then the dense columns, then columns
    that are always zero up to the next multiple of :data:`WIDTH_MULTIPLE`. Most kinds read one;
    single_task one of each task's own, stem one per task and a shared one (see :mod:`ple.kinds` and
    :class:`ple.embeddings.FeatureEmbeddings`).

    Args:
        embeddings: the categorical features; None for a model of dense columns only.
        dense_width: N, number of dense columns; may be 0 where there are embeddings.
        levels: the levels, first first.
        tower_hidden: hidden widths of each task's tower, in task order.
        activation: of experts, gates' hidden layers and towers: relu, silu or gelu.
        normalization: inside experts, before each activation: none, layer or batch.
        input_dropout: rate on the feature vector.
        expert_dropout: rate after each activation of an expert.
        tower_dropout: rate after each hidden activation of a tower.
        kind: which model of the family, a key of :data:`ple.kinds.KINDS`.
        groups: home only: the tasks of each group.
        fusion: what one level hands to the next, see :class:`ple.fusion.Fusion`.
        feature_gate: home only: factors and rank, see :class:`ple.interaction.FeatureGate`.
        cross: crosses of features before level 1; absent = none.
        gate_l2: factor of the squared norm of the gates' weights in :meth:`penalty`.
        task_names, group_names: for :meth:`gate_names`; absent = numbers.
        tower_outputs: outputs of each task's tower; absent = 1.
        transfer_from: tower each task's tower takes information from, see
            :class:`ple.towers.Towers`; absent = none does.

    Attributes:
        batch_statistics: whether training reads ``real_B``.
        training_dtype: of the matrix products in training mode: float32, or bfloat16 by autocast
            (weights, their gradients, tables, losses and all of evaluation stay float32).

    Raises:
        ValueError: the parts do not fit together; the message says which and what to change.
    """

    def __init__(
        self,
        embeddings: "FeatureEmbeddings | ServingTables | None",
        dense_width: int,
        levels: Sequence[LevelSpec],
        tower_hidden: Sequence[Sequence[int]],
        activation: str = "relu",
        normalization: str = "none",
        input_dropout: float = 0.0,
        expert_dropout: float = 0.0,
        tower_dropout: float = 0.0,
        *,
        kind: str = "ple",
        groups: Sequence[Sequence[int]] = (),
        fusion: str = "weighted_sum",
        feature_gate: tuple[int, int] = (2, 16),
        cross: CrossSpec | None = None,
        gate_l2: float = 0.0,
        task_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
        tower_outputs: Sequence[int] | None = None,
        transfer_from: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        check_dropout("input_dropout", input_dropout)
        wiring = wire(kind, levels, groups)
        signal = (0 if embeddings is None else embeddings.width) + dense_width
        if signal == 0:
            raise ValueError("the model has no features: no embeddings and no dense columns")
        if embeddings is not None and embeddings.views != wiring.views:
            raise ValueError(
                f"kind {kind!r} of {len(wiring.task_outputs)} tasks reads {wiring.views} feature"
                f" vectors, the tables give {embeddings.views}: set the tables' `view` or `slices`"
            )
        self.embeddings = embeddings
        self.dense_width = dense_width
        self.input_dropout = input_dropout
        self.padding = -signal % WIDTH_MULTIPLE
        width = signal + self.padding
        crosses = wiring.views if cross is not None else 0
        self.crosses = nn.ModuleList(
            LowRankCross(width, cross.layers, cross.rank, signal)  # type: ignore[union-attr]
            for _ in range(crosses)
        )
        options = ExpertOptions(activation, normalization, expert_dropout)
        self.extraction = Extraction(wiring, width, options, fusion, feature_gate, signal)
        if len(tower_hidden) != self.extraction.tasks:
            raise ValueError(
                f"{len(tower_hidden)} towers for {self.extraction.tasks} tasks;"
                " `tower_hidden` needs one list of widths per task"
            )
        self.towers = Towers(
            self.extraction.out_width,
            tower_hidden,
            activation,
            tower_dropout,
            tower_outputs,
            transfer_from,
        )
        self._task_names = _names("task", self.extraction.tasks, task_names)
        self._group_names = _names("group", len(groups), group_names)
        self.batch_statistics = normalization == "batch"
        self.training_dtype = torch.float32
        self.gate_l2 = gate_l2
        if gate_l2 and not self.extraction.gate_weights():
            raise ValueError(f"`gate_l2` has no effect: this model of kind {kind!r} has no gates")

    @overload
    def forward(
        self,
        ids: "KeyedJaggedTensor | StartedIds | FeatureIds | None",
        weighted_ids: "KeyedJaggedTensor | None",
        dense_BN: Tensor,
        return_gates: Literal[False] = False,
        *,
        real_B: Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        ids: "KeyedJaggedTensor | StartedIds | FeatureIds | None",
        weighted_ids: "KeyedJaggedTensor | None",
        dense_BN: Tensor,
        return_gates: Literal[True],
    ) -> tuple[Tensor, list[list[Tensor]]]: ...

    @overload
    def forward(
        self,
        ids: "KeyedJaggedTensor | StartedIds | FeatureIds | None",
        weighted_ids: "KeyedJaggedTensor | None",
        dense_BN: Tensor,
        return_gates: Literal[False] = False,
        *,
        objective: Objective,
        real_B: Tensor | None = None,
    ) -> Any: ...

    def forward(
        self,
        ids: "KeyedJaggedTensor | StartedIds | FeatureIds | None",
        weighted_ids: "KeyedJaggedTensor | None",
        dense_BN: Tensor,
        return_gates: bool = False,
        objective: Objective | None = None,
        real_B: Tensor | None = None,
    ) -> Any:
        """Outputs of the towers [B, O], of tasks with one output their logit or value;
        :class:`ple.heads.Heads` makes losses and predictions of them.

        Args:
            ids, weighted_ids: see :meth:`ple.embeddings.FeatureEmbeddings.forward`; what
                ``embeddings.start`` gave of both, and None; over
                :class:`ple.serving_tables.ServingTables` all ids, and None.
            dense_BN: dense columns; [B, 0] if there are none.
            return_gates: also return the gate weights, detached, since they are for looking at:
                a list per level of a list per stream of [B, E]; :meth:`gate_names` names them.
                Kinds without gates give an empty list.
            objective: when given, the result is ``objective(outputs, boundary)`` instead. It runs
                inside the forward pass, so that it may take gradients at the boundary with
                ``torch.autograd.grad`` before DistributedDataParallel sees the outputs and without
                moving fused tables. ``boundary["features"]`` lists the feature vectors that enter
                level 1, ``boundary["last_level"]`` the distinct streams that enter the last level
                (of shared_bottom: the stream all towers read), ``boundary["outputs"]`` the outputs
                of each tower before they are joined.
            real_B: bool, the rows that enter batch statistics (normalization batch); absent = all.
        """
        features = self.features(ids, weighted_ids, dense_BN)
        entering: list[Tensor] = []
        half = self.training and self.training_dtype is not torch.float32
        with torch.autocast(dense_BN.device.type, self.training_dtype, enabled=half):
            features = self._crossed(features)
            if objective is not None:
                # Without tables nothing below the feature vector asks for gradients.
                features = [x if x.requires_grad else x.detach().requires_grad_() for x in features]
            streams_TBD, gates = self.extraction(features, real_B=real_B, entering=entering)
            outputs = self.towers.separate(streams_TBD)
        if half:
            outputs = [output_BO.float() for output_BO in outputs]
        joined_BO = torch.cat(outputs, dim=1)
        if objective is not None:
            boundary = {"features": features, "last_level": entering, "outputs": outputs}
            # Inside the objective gradients are taken at the boundary, never at weights.
            self.extraction.scope.activations_only = True
            try:
                return objective(joined_BO, boundary)
            finally:
                self.extraction.scope.activations_only = False
        if not return_gates:
            return joined_BO
        return joined_BO, [[gate_BE.detach() for gate_BE in level] for level in gates]

    def _crossed(self, features: list[Tensor]) -> list[Tensor]:
        """The feature vectors that enter level 1."""
        if torch.is_autocast_enabled(features[0].device.type):
            # Once for all that read them: autocast would convert them for every product anew.
            features = [x_BD.to(self.training_dtype) for x_BD in features]
        if self.crosses:
            features = [cross(x_BD) for cross, x_BD in zip(self.crosses, features, strict=True)]
        if self.input_dropout:
            features = [F.dropout(x_BD, self.input_dropout, self.training) for x_BD in features]
        return features

    def features(
        self,
        ids: "KeyedJaggedTensor | StartedIds | FeatureIds | None",
        weighted_ids: "KeyedJaggedTensor | None",
        dense_BN: Tensor,
    ) -> list[Tensor]:
        """The feature vectors, each [B, D], before crosses and dropout."""
        if dense_BN.shape[1] != self.dense_width:
            raise ValueError(
                f"the batch has {dense_BN.shape[1]} dense columns, the model {self.dense_width}"
            )
        views: list[list[Tensor]] = [[] for _ in range(self.extraction.wiring.views)]
        if self.embeddings is not None:
            # Which kind of ids depends on the kind of tables.
            views = self.embeddings.pieces(ids, weighted_ids)  # type: ignore[arg-type]
        more = [dense_BN] if self.dense_width else []
        more += [dense_BN.new_zeros(len(dense_BN), self.padding)] if self.padding else []
        joined = [[*pieces, *more] for pieces in views]
        return [pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1) for pieces in joined]

    def penalty(self) -> Tensor:
        """``gate_l2`` · Σ‖W‖² over the weight matrices of the gates; add it to the joint loss.

        The same on every worker, so that averaging gradients over workers leaves it as it is.
        """
        weights = self.extraction.gate_weights() if self.gate_l2 else []
        if not weights:
            return torch.zeros((), device=next(self.towers.parameters()).device)
        return self.gate_l2 * torch.stack([weight.square().sum() for weight in weights]).sum()

    def gate_names(self) -> list[list[tuple[str, tuple[str, ...]]]]:
        """What ``return_gates`` gives, in words: level → stream → (stream, its experts)."""
        names = (self._task_names, self._group_names)
        return [
            [
                (owner_name(output.owner, *names), expert_names(level, output, *names))
                for output in level.outputs
            ]
            for level in self.extraction.wiring.levels
            if all(output.gated for output in level.outputs)
        ]

    def bank_names(self) -> list[list[tuple[str, ...]]]:
        """Labels of the experts of each bank: level → bank, in the order of its ``experts``."""
        names = (self._task_names, self._group_names)
        return [
            [
                expert_names(level, Output(bank.owner, (position,)), *names)
                for position, bank in enumerate(level.banks)
            ]
            for level in self.extraction.wiring.levels
        ]


def _names(kind: str, count: int, given: Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return tuple(f"{kind} {number + 1}" for number in range(count))
    if len(given) != count:
        raise ValueError(f"{len(given)} names for {count} {kind}s; give one each")
    return tuple(given)
