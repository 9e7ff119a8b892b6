"""The trials of a search: which settings may be tried, what is drawn, each as a checked experiment.

Ranges are Ray Tune's own search domains, drawn from a seeded generator.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain

from pipeline.comparison.runs import RunSpec, run_spec
from pipeline.config import ConfigError, Experiment
from pipeline.config.init import InitConfig
from pipeline.config.load import assign, parse_experiment
from pipeline.config.tune import TuneParameter
from pipeline.evaluation.selection import selection_metric

# Patterns of keys, the first that fits decides. What is not searched is refused with the reason.
_PREPARED = "it needs another dataset: prepare one for each value and search on each"
_ANOTHER_QUESTION = "it changes what is predicted, so that trials could not be compared"
_NO_BETTER = "it does not decide what a model learns, or it decides how trials are judged"
_SEEDS = "a seed is no setting: train the best config with several (jobs.compare --seeds)"
_REFUSED = {
    "data.path": _PREPARED,
    "data.splits*": _PREPARED,
    "data.date_format": _PREPARED,
    "tasks.*.negatives_kept": _PREPARED,
    "tasks": _ANOTHER_QUESTION,
    **dict.fromkeys(
        [f"tasks.*.{key}" for key in ("name", "label", "space", "loss", "quantile")],
        _ANOTHER_QUESTION,
    ),
    "tasks.*.ordinal_range*": _ANOTHER_QUESTION,
    "train.seed": _SEEDS,
}
_SEARCHED = (
    *("model.*", "balance*", "table_optimizer*", "dense_optimizer*", "schedule*", "tasks.*.*"),
    *("table_schedule*", "features.*", "train.epochs", "train.precision"),
    *("train.early_stopping.patience", "data.batch_size", "data.shuffle_rows"),
)
# Digits of a drawn fraction: more only make tables hard to read.
_DIGITS = 4
_TRIES = 100


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0, in the order of the search.
        values: by key, what is tried; of the file's own trial, what the file says.
        spec: its training, as a run of a comparison.
    """

    number: int
    values: dict[str, Any]
    spec: RunSpec

    @property
    def experiment(self) -> Experiment:
        return self.spec.experiment

    @property
    def title(self) -> str:
        return f"trial {self.number}"


def plan_trials(experiment: Experiment, dataset_digest: str) -> list[Trial]:
    """All trials of ``tune``, every one's experiment checked whole.

    Raises:
        ConfigError: no parameters, a key that does not exist or cannot be searched, values the
            schema refuses, a metric that is not there, a search without choice.
    """
    config = experiment.tune
    if not config.parameters:
        raise ConfigError(
            "tune.parameters: nothing to search; name settings, such as "
            "{dense_optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, scale: log}}"
        )
    if experiment.init != InitConfig():
        raise ConfigError("init: has no effect on trials, which all begin fresh; remove it")
    metric = _metric(experiment)
    _check_keys(experiment, metric)
    _check_stopping(experiment)
    draws = _grid(config.parameters) if config.search == "grid" else _random(experiment)
    limit = None if config.search == "grid" else config.trial_count
    trials: list[Trial] = []
    keys: set[str] = set()
    repeated = 0
    for values in draws:
        trial = _trial(experiment, metric, len(trials), values, dataset_digest)
        repeated = repeated + 1 if trial.spec.key in keys else 0
        if not repeated:
            keys.add(trial.spec.key)
            trials.append(trial)
        if len(trials) == limit:
            break
        if limit is not None and repeated == _TRIES:
            raise ConfigError(
                f"tune.trials: {limit} are asked for, and the values allow hardly more than "
                f"{len(trials)} different ones; lower tune.trials, or use search: grid"
            )
    if len(trials) < 2:
        raise ConfigError("tune.parameters: one combination is no search; give more values")
    return trials


def _metric(experiment: Experiment) -> str:
    name = experiment.tune.metric or experiment.train.early_stopping.metric
    try:
        selection_metric(name, experiment.tasks, experiment.evaluation.group_by is not None)
    except ConfigError as error:
        if experiment.tune.metric is None:
            raise
        raise ConfigError(
            str(error).replace("train.early_stopping.metric", "tune.metric")
        ) from None
    return name


def _check_keys(experiment: Experiment, metric: str) -> None:
    """Refuses keys that exist and cannot be searched; unknown ones fall to the schema."""
    for key in experiment.tune.parameters:
        reason = next((why for p, why in _REFUSED.items() if fnmatchcase(key, p)), None)
        if reason is None and fnmatchcase(key, "tasks.*.weight") and metric == "joint_loss":
            reason = "joint_loss is weighted by it, so that trials could not be compared"
        known = key.partition(".")[0] in Experiment.model_fields
        if reason is None and known and not any(fnmatchcase(key, p) for p in _SEARCHED):
            reason = _NO_BETTER
        if reason is not None:
            raise ConfigError(f"tune.parameters.{key}: cannot be searched: {reason}")


def _check_stopping(experiment: Experiment) -> None:
    config, train = experiment.tune, experiment.train
    if config.early_stopping is None:
        return
    if train.evaluate_every is not None:
        if "data.batch_size" in config.parameters:
            raise ConfigError(
                "tune.early_stopping: with train.evaluate_every trials of different data.batch_size"
                " are judged after different numbers of rows; leave train.evaluate_every out"
            )
        return
    epochs = config.parameters.get("train.epochs", TuneParameter(values=[train.epochs]))
    longest = epochs.high if epochs.values is None else max(epochs.values)
    if longest is not None and longest <= config.early_stopping.grace:
        raise ConfigError(
            f"tune.early_stopping.grace: {config.early_stopping.grace} evaluations are all that "
            "trials have, so none is stopped; raise train.epochs, set train.evaluate_every, or "
            "leave tune.early_stopping out"
        )


def _grid(parameters: dict[str, TuneParameter]) -> Iterator[dict[str, Any]]:
    lists = [parameter.values or [] for parameter in parameters.values()]
    for values in itertools.product(*lists):
        yield dict(zip(parameters, values, strict=True))


def _random(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """The file's own values (no draw), then draws without end."""
    yield {}
    config = experiment.tune
    generator = np.random.default_rng(config.seed or 0)
    domains = {key: _domain(parameter) for key, parameter in config.parameters.items()}
    while True:
        # By name, so that the order in the file does not matter.
        drawn = {key: domains[key].sample(random_state=generator) for key in sorted(domains)}
        yield {key: _rounded(drawn[key], config.parameters[key]) for key in domains}


def _domain(parameter: TuneParameter) -> Domain:
    low, high = parameter.low, parameter.high
    if low is None or high is None:
        return tune.choice(parameter.values or [])
    log = parameter.scale == "log"
    if isinstance(low, int) and isinstance(high, int):
        # Ray's ranges of whole numbers end before their upper limit.
        return (tune.lograndint if log else tune.randint)(low, high + 1)
    return (tune.loguniform if log else tune.uniform)(low, high)


def _rounded(value: Any, parameter: TuneParameter) -> Any:
    if parameter.low is None or parameter.high is None:
        return value
    if isinstance(parameter.low, int) and isinstance(parameter.high, int):
        return int(value)
    return min(max(float(f"{value:.{_DIGITS}g}"), parameter.low), parameter.high)


def _trial(
    experiment: Experiment, metric: str, number: int, values: dict[str, Any], dataset_digest: str
) -> Trial:
    # Only what was set: kinds and methods have defaults of their own, and refuse settings they do
    # not read.
    tree = experiment.model_dump(mode="json", exclude_unset=True)
    tree.pop("tune", None)
    assign(tree, "train.early_stopping.metric", metric, "tune.metric")
    for key, value in values.items():
        assign(tree, key, value, f"tune.parameters.{key}")
    said = ", ".join(f"{key}={value}" for key, value in values.items())
    checked = parse_experiment(tree, source=f"tune.parameters, trial {number} ({said})")
    spec = run_spec(checked, dataset_digest, checked.model.kind, None, checked.train.seed)
    resolved = checked.model_dump(mode="json")
    return Trial(
        number, {key: _value_at(resolved, key) for key in experiment.tune.parameters}, spec
    )


def _value_at(tree: Any, key: str) -> Any:
    """What a resolved tree says under a dotted key; None where it says nothing."""
    for part in key.split("."):
        if isinstance(tree, list):
            named = (item for item in tree if isinstance(item, dict) and item.get("name") == part)
            short = part.isdigit() and int(part) < len(tree)
            tree = tree[int(part)] if short else next(named, None)
        elif isinstance(tree, dict):
            tree = tree.get(part)
        else:
            return None
    return tree
