"""The dense tower: which kind of multi-task model, its levels, and the task towers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.base import Section

Kind = Literal[
    "single_task", "shared_bottom", "moe", "mmoe", "cgc", "ple", "adatt", "home", "stem"
]  # fmt: skip

# Kinds whose levels have these settings; any other kind refuses them.
_TASK_EXPERTS = ("cgc", "ple", "adatt", "home", "stem")
_SHARED_EXPERTS = ("moe", "mmoe", *_TASK_EXPERTS)
_SHARED_HIDDEN = ("cgc", "ple", "adatt", "stem")
_FUSED = ("moe", "ple", "adatt", "stem")


class LevelConfig(Section):
    """One level; which counts it takes depends on model.kind (PLE paper, section 4.2)."""

    shared_experts: NonNegativeInt = Field(
        default=0,
        description="m_s, experts of all tasks. Not with single_task and shared_bottom, whose only "
        "expert is `hidden`.",
    )
    task_experts: NonNegativeInt | dict[str, NonNegativeInt] = Field(
        default=0,
        description="m_k, experts of each task: one number, or one per task by name. cgc, ple, "
        "adatt, stem, and level 2 of home.",
    )
    group_experts: NonNegativeInt | dict[str, NonNegativeInt] = Field(
        default=0,
        description="home only: experts of each group of tasks: one number, or one per group.",
    )
    hidden: list[PositiveInt] = Field(
        min_length=1, description="Hidden widths of an expert MLP; the last is the level's width."
    )
    shared_hidden: list[PositiveInt] | None = Field(
        default=None, description="Hidden widths of shared experts, if not `hidden`; same last."
    )
    gate_hidden: list[PositiveInt] = Field(
        default_factory=list, description="Hidden widths of the gates; empty = a linear gate."
    )
    gate_bias: bool = Field(default=False, description="Bias in the gates' last layer.")

    @model_validator(mode="after")
    def _widths(self) -> Self:
        if self.shared_hidden is not None:
            if not self.shared_hidden or self.shared_hidden[-1] != self.hidden[-1]:
                raise ValueError("shared_hidden must end in the same width as hidden")
            if self.shared_experts == 0:
                raise ValueError("shared_hidden has no effect with shared_experts: 0")
        return self


class InteractionConfig(Section):
    """Crosses of features before level 1 (DCN-v2, arXiv 2008.13535, low rank)."""

    kind: Literal["dcn_v2"] = Field(
        default="dcn_v2", description="x_{l+1} = x_0 ⊙ (U_l V_lᵀ x_l + b_l) + x_l."
    )
    layers: PositiveInt = Field(default=2, description="Cross layers.")
    rank: PositiveInt = Field(default=64, description="Columns of U_l and V_l.")


class FeatureGateConfig(Section):
    """Each owner's own scaling of what its experts read (HoME): v ⊙ Σ_i g_i(v) · 2σ(v B_i A_i)."""

    factors: PositiveInt = Field(default=2, description="Low-rank maps that are mixed.")
    rank: PositiveInt = Field(default=16, description="Columns of B_i and rows of A_i.")


class ModelConfig(Section):
    """The dense tower: the kind of multi-task model, its levels, and the task towers."""

    kind: Kind = Field(
        default="ple",
        description="single_task: tables, MLP and tower of each task's own. shared_bottom: one MLP "
        "for all. moe, mmoe: shared experts, one gate or one per task. cgc, ple: experts of tasks "
        "and shared ones, one level or several. adatt: gates over all experts, and each task's own "
        "once more. home: two levels with groups of tasks. stem: embeddings of each task's own "
        "beside shared ones.",
    )
    levels: list[LevelConfig] = Field(
        min_length=1,
        description="Levels, first first. One level: single_task, shared_bottom, cgc. Two: home "
        "(meta experts of groups, then experts). Any number: moe, mmoe, ple, adatt, stem.",
    )
    groups: dict[str, list[str]] | None = Field(
        default=None, description="home only: the tasks of each group; every task is in one."
    )
    feature_gate: FeatureGateConfig | None = Field(
        default=None,
        description="home only: gates on what experts read; absent = 2 factors of rank 16.",
    )
    interaction: InteractionConfig | None = Field(
        default=None, description="Crosses of features before level 1; absent = none."
    )
    fusion: Literal["weighted_sum", "sum_with_previous", "product", "concatenation"] = Field(
        default="weighted_sum",
        description="What a level hands to the next, from its gated sum o and the stream x before "
        "it: o; o + W x; o ⊙ W x; [o, x]. W is the identity where the widths agree. moe, ple, "
        "adatt and stem of two levels or more.",
    )
    gate_l2: float = Field(
        default=0.0, ge=0, description="Factor of Σ‖W‖² of the gates' weights in the loss."
    )
    tower_hidden: list[PositiveInt] = Field(
        default_factory=lambda: [64], description="Hidden widths of every task tower."
    )
    activation: Literal["relu", "silu", "gelu"] = Field(
        default="relu", description="Of experts, gates and towers; absent = relu, for home silu."
    )
    normalization: Literal["none", "layer", "batch"] = Field(
        default="none",
        description="Before each activation of an expert; absent = none, for home batch. batch: "
        "statistics over the rows of the global batch that some task is trained on.",
    )
    input_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on the feature vector before level 1."
    )
    expert_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout inside experts.")
    tower_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout inside towers.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_home(cls, tree: Any) -> Any:
        # Filled in here, so that the printed configuration shows what is in force.
        if not isinstance(tree, dict) or tree.get("kind") != "home":
            return tree
        given = {key: value for key, value in tree.items() if value is not None}
        return {"activation": "silu", "normalization": "batch", "feature_gate": {}} | given

    @model_validator(mode="after")
    def _settings_of_the_kind(self) -> Self:
        depth = {"single_task": 1, "shared_bottom": 1, "cgc": 1, "home": 2}.get(self.kind)
        if depth is not None and len(self.levels) != depth:
            raise ValueError(
                f"kind: {self.kind} has {depth} level{'s' * (depth > 1)}, levels has "
                f"{len(self.levels)}"
            )
        for number, level in enumerate(self.levels):
            _check_level(self.kind, number, level)
        for name in ("groups", "feature_gate"):
            if self.kind != "home" and getattr(self, name) is not None:
                raise ValueError(f"`{name}` has no effect with kind: {self.kind}; remove it")
        if self.kind == "home" and not self.groups:
            raise ValueError("kind: home needs `groups`: name each group and list its tasks")
        if self.fusion != "weighted_sum" and (self.kind not in _FUSED or len(self.levels) == 1):
            raise ValueError(
                f"fusion: {self.fusion} has no effect with kind: {self.kind} of "
                f"{len(self.levels)} level(s); it joins the levels of {', '.join(_FUSED)}"
            )
        if self.gate_l2 and self.kind not in _SHARED_EXPERTS:
            raise ValueError(f"`gate_l2` has no effect with kind: {self.kind}, which has no gates")
        return self

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raises ValueError unless counts and groups name exactly these tasks."""
        if self.groups is not None:
            listed = sorted(task for members in self.groups.values() for task in members)
            if listed != sorted(tasks) or not all(self.groups.values()):
                raise ValueError(
                    f"model.groups hold the tasks {listed}, the tasks are {sorted(tasks)}: put "
                    "each task in one group"
                )
        for number, level in enumerate(self.levels):
            for key, counts, names in (
                ("task_experts", level.task_experts, tasks),
                ("group_experts", level.group_experts, list(self.groups or ())),
            ):
                if isinstance(counts, dict) and set(counts) != set(names):
                    one = key.removesuffix("_experts")
                    raise ValueError(
                        f"model.levels[{number}].{key} names {sorted(counts)}, the {one}s are "
                        f"{sorted(names)}: give one count per {one}"
                    )


def _check_level(kind: str, number: int, level: LevelConfig) -> None:
    where = f"levels.{number}"
    own, groups = _counts(level.task_experts), _counts(level.group_experts)
    for key, set_, kinds in (
        ("shared_experts", level.shared_experts > 0, _SHARED_EXPERTS),
        ("task_experts", any(own), _TASK_EXPERTS),
        ("group_experts", any(groups), ("home",)),
        ("shared_hidden", level.shared_hidden is not None, _SHARED_HIDDEN),
        ("gate_hidden", bool(level.gate_hidden), _SHARED_EXPERTS),
        ("gate_bias", level.gate_bias, _SHARED_EXPERTS),
    ):
        if set_ and kind not in kinds:
            raise ValueError(
                f"{where}.{key} has no effect with kind: {kind}; it belongs to {', '.join(kinds)}"
            )
    if kind in ("cgc", "ple"):
        for key in ("shared_experts", "task_experts"):
            if key not in level.model_fields_set:
                raise ValueError(f"{where}.{key} is missing; kind: {kind} needs it (0 is a count)")
        if level.shared_experts == 0 and min(own) == 0:
            raise ValueError(f"{where}: a task has no experts; set task_experts or shared_experts")
    if kind in ("moe", "mmoe", "stem", "home") and level.shared_experts == 0:
        raise ValueError(f"{where}.shared_experts must be at least 1 with kind: {kind}")
    if kind in ("adatt", "stem") and min(own) == 0:
        raise ValueError(f"{where}.task_experts must be at least 1 with kind: {kind}")
    if kind == "home":
        if min(groups) == 0:
            raise ValueError(f"{where}.group_experts must be at least 1 with kind: home")
        if number == 0 and any(own):
            raise ValueError(f"{where}.task_experts has no effect: home's level 1 is of groups")
        if number == 1 and min(own) == 0:
            raise ValueError(f"{where}.task_experts must be at least 1 with kind: home")


def _counts(counts: int | Mapping[str, int]) -> list[int]:
    return [counts] if isinstance(counts, int) else list(counts.values()) or [0]
