"""Equal budgets: every kind with expert widths at which it costs as much as the config's model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.comparison.layouts import SINGLE_TASK, has_own_widths, kind_experiment
from pipeline.config import Experiment
from pipeline.data.fitting import with_table_widths
from pipeline.data.transforms import FeatureTransforms

Budget = Literal["parameters", "flops", "none"]


@dataclass(frozen=True)
class KindPlan:
    """The experiments of one kind: one of all tasks, or for single_task one of each.

    Attributes:
        kind: kind of model.
        experiments: by task; the key is None where one model has all tasks.
        parameters: dense parameters of all its models; embedding tables are left out.
        flops_per_row: of their dense forward passes.
        table_parameters: numbers in their embedding tables; ``compare.tables`` says what is
            equal about them.
        budget_share: cost over the budget; None without a budget.
    """

    kind: str
    experiments: dict[str | None, Experiment]
    parameters: int
    flops_per_row: int
    table_parameters: int
    budget_share: float | None

    @property
    def widths(self) -> str:
        """Hidden widths of every level: ``104-52, 52``; by task where they differ."""
        by_task = {
            task: ", ".join("-".join(map(str, level.hidden)) for level in experiment.model.levels)
            for task, experiment in self.experiments.items()
        }
        if len(set(by_task.values())) == 1:
            return next(iter(by_task.values()))
        return "; ".join(f"{task} {widths}" for task, widths in by_task.items())


def plan_kinds(
    experiment: Experiment, kinds: Sequence[str], budget: Budget, transforms: FeatureTransforms
) -> list[KindPlan]:
    """Derives every kind and scales its expert widths until it costs what the config's model does.

    The single-task models do so together, or each with ``compare.single_task_budget: each``. The
    config's own kind stays as it is, and so does a kind whose levels ``compare.kinds`` gives.

    Raises:
        ConfigError: a kind cannot be derived, or the budget is out of its reach.
    """
    return [_plan_kind(experiment, kind, budget, transforms) for kind in kinds]


def _plan_kind(
    experiment: Experiment, kind: str, budget: Budget, transforms: FeatureTransforms
) -> KindPlan:
    # torchrec is slow to import, and the command line should answer before.
    from pipeline.model import cost_of, with_matched_width

    measure: Literal["parameters", "flops_per_row"] = (
        "flops_per_row" if budget == "flops" else "parameters"
    )
    target = getattr(cost_of(experiment, transforms), measure)
    tasks = [task.name for task in experiment.tasks] if kind == SINGLE_TASK else [None]
    models = {task: kind_experiment(experiment, kind, task) for task in tasks}
    transforms = with_table_widths(transforms, next(iter(models.values())).features)
    each = kind == SINGLE_TASK and experiment.compare.single_task_budget == "each"
    whole = target * len(models) if each else target
    own = has_own_widths(experiment, kind) or (
        kind == experiment.model.kind and kind != SINGLE_TASK
    )
    if budget != "none" and not own:
        models = {
            task: with_matched_width(model, transforms, whole // len(models), measure)
            for task, model in models.items()
        }
    costs = [cost_of(model, transforms) for model in models.values()]
    return KindPlan(
        kind=kind,
        experiments=models,
        parameters=sum(cost.parameters for cost in costs),
        flops_per_row=sum(cost.flops_per_row for cost in costs),
        table_parameters=sum(cost.table_parameters for cost in costs),
        budget_share=None
        if budget == "none"
        else sum(getattr(cost, measure) for cost in costs) / whole,
    )
