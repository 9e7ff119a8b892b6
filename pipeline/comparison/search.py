"""A small search of learning rates: the same points around the config's for every kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.comparison.runs import RunRecord
from pipeline.config import ConfigError, Experiment
from pipeline.evaluation.selection import selection_metric

# The search has a seed of its own, so that no scored run was looked at before.
SEARCH_SEED_OFFSET = 1000
STEP = 10**0.5
_REACH = 2


@dataclass(frozen=True)
class RatePoint:
    """Factors on the config's learning rates."""

    dense: float
    table: float


@dataclass(frozen=True)
class RateChoice:
    """The point chosen for one model: its rates and its validation value."""

    kind: str
    task: str | None
    point: int
    dense_rate: float
    table_rate: float
    value: float
    at_edge: bool


def rate_grid(points: int) -> list[RatePoint]:
    """The `points` factors nearest (1, 1) on a log grid of √10, the config's own first.

    Raises:
        ConfigError: more points than the grid has.
    """
    reach = range(-_REACH, _REACH + 1)
    # By distance from the centre; the dense rate moves first, upwards first.
    exponents = sorted(
        ((dense, table) for dense in reach for table in reach),
        key=lambda e: (e[0] ** 2 + e[1] ** 2, abs(e[1]), -e[0], -e[1]),
    )
    if not 1 <= points <= len(exponents):
        raise ConfigError(f"--search-lr: {points} points; choose 1 to {len(exponents)}")
    return [RatePoint(STEP**dense, STEP**table) for dense, table in exponents[:points]]


def with_rates(experiment: Experiment, point: RatePoint) -> Experiment:
    """The experiment at one point of the grid, rates rounded to three digits."""

    def moved(rate: float, factor: float) -> float:
        return rate if factor == 1 else float(f"{rate * factor:.3g}")

    dense, table = experiment.dense_optimizer, experiment.table_optimizer
    return experiment.model_copy(
        update={
            "dense_optimizer": dense.model_copy(
                update={"learning_rate": moved(dense.learning_rate, point.dense)}
            ),
            "table_optimizer": table.model_copy(
                update={"learning_rate": moved(table.learning_rate, point.table)}
            ),
        }
    )


def choose_rates(
    experiment: Experiment,
    kind: str,
    task: str | None,
    grid: Sequence[RatePoint],
    records: Mapping[int, RunRecord],
) -> RateChoice | None:
    """The point with the best validation value; the earlier of equals; None if none finished.

    Args:
        experiment: of this model, its metric says what is better.
        records: finished runs by position in the grid.
    """
    metric = selection_metric(
        experiment.train.early_stopping.metric,
        experiment.tasks,
        grouped=experiment.evaluation.group_by is not None,
    )
    best: int | None = None
    for point in sorted(records):
        value = records[point].best_value
        if metric.is_better(value, None if best is None else records[best].best_value):
            best = point
    if best is None:
        return None
    chosen = with_rates(experiment, grid[best])
    return RateChoice(
        kind=kind,
        task=task,
        point=best,
        dense_rate=chosen.dense_optimizer.learning_rate,
        table_rate=chosen.table_optimizer.learning_rate,
        value=records[best].best_value,
        at_edge=_at_edge(grid, best),
    )


def _at_edge(grid: Sequence[RatePoint], chosen: int) -> bool:
    """Whether the grid ends at the chosen rates, so that better ones may lie beyond."""
    point = grid[chosen]
    dense, table = {p.dense for p in grid}, {p.table for p in grid}
    return (len(dense) > 1 and point.dense in (min(dense), max(dense))) or (
        len(table) > 1 and point.table in (min(table), max(table))
    )
