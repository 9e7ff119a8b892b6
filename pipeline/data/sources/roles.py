"""Which columns an experiment reads, in which role, and what must be counted beforehand."""

from dataclasses import dataclass, replace

from pipeline.config import Experiment
from pipeline.config.features import CategoricalFeature, NumericFeature
from pipeline.data.targets import TargetEncoder


@dataclass(frozen=True)
class NeededColumn:
    """A column the experiment reads.

    Attributes:
        name, role, weight_of: as in ``manifest.Column``.
        counted: whether training needs its statistics (a vocabulary, moments or quantiles).
    """

    name: str
    role: str
    weight_of: str | None = None
    counted: bool = False


def needed_columns(experiment: Experiment) -> tuple[NeededColumn, ...]:
    """Every column once: features, their weights, labels, spaces, row weights, keys."""
    features = experiment.features
    needed: list[NeededColumn] = []
    for ids in features.categorical:
        needed.append(NeededColumn(ids.name, "categorical", counted=_is_counted(ids)))
        if ids.weights is not None:
            needed.append(NeededColumn(ids.weights, "weight", weight_of=ids.name))
    for numbers in features.numeric:
        needed.append(NeededColumn(numbers.name, "numeric", counted=_is_counted(numbers)))
    for cross in features.crosses:
        needed += [NeededColumn(name, "categorical") for name in cross.columns]
    for task in experiment.tasks:
        needed += [NeededColumn(name, "label") for name in task.label_columns]
    sample_weight = experiment.data.sample_weight
    targets = TargetEncoder.of(experiment.tasks, sample_weight).columns
    needed += [
        NeededColumn(name, "weight" if name == sample_weight else "space") for name in targets
    ]
    evaluation = experiment.evaluation
    slices = set(evaluation.slices)
    needed += [NeededColumn(name, "categorical", counted=True) for name in evaluation.slices]
    needed += [NeededColumn(name, "key") for name in evaluation.key_columns]
    by_name: dict[str, NeededColumn] = {}
    for column in needed:
        known = by_name.setdefault(column.name, column)
        if column.name in slices and known.role == "categorical":
            by_name[column.name] = replace(known, counted=True)
    return tuple(by_name.values())


def _is_counted(feature: CategoricalFeature | NumericFeature) -> bool:
    if isinstance(feature, CategoricalFeature):
        return feature.encoder == "vocabulary"
    return feature.scale == "standardise" or feature.buckets is not None
