"""What is tried: draws from a seed, grids, and what is refused before anything runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.config import ConfigError, Experiment
from pipeline.config.load import apply_override, parse_experiment
from pipeline.tuning.space import Trial, plan_trials

Build = Callable[..., Experiment]
RATE = "dense_optimizer.learning_rate"
LOG = {"low": 1e-4, "high": 1e-2, "scale": "log"}


def values_of(trials: list[Trial], key: str) -> list[Any]:
    return [trial.values[key] for trial in trials]


def test_draws_follow_the_seed(searched: Build) -> None:
    parameters = {
        RATE: LOG,
        "train.epochs": {"low": 2, "high": 64},
        "tasks.like.weight": {"low": 0.5, "high": 2.0},
        "model.levels.0.hidden": {"values": [[4], [8, 4], [16]]},
    }
    trials = plan_trials(searched({"parameters": parameters, "trials": 6, "seed": 7}), "digest")
    # Of each trial in the order of the keys' names; the first has the file's own values.
    generator = np.random.default_rng(7)
    expected = []
    for _ in range(5):
        rate = float(np.exp(generator.uniform(np.log(1e-4), np.log(1e-2))))
        hidden = [[4], [8, 4], [16]][generator.choice(np.arange(3))]
        weight = generator.uniform(0.5, 2.0)
        epochs = int(generator.integers(2, 65))
        expected.append((float(f"{rate:.4g}"), epochs, float(f"{weight:.4g}"), hidden))
    assert [tuple(trial.values.values()) for trial in trials[1:]] == expected
    assert tuple(trials[0].values.values()) == (0.02, 1, 1.0, [8])
    assert list(trials[0].values) == list(parameters)
    # And they are in the experiments, not only in the table.
    for trial in trials:
        experiment = trial.experiment
        assert experiment.dense_optimizer.learning_rate == trial.values[RATE]
        assert experiment.tasks[1].weight == trial.values["tasks.like.weight"]
        assert experiment.tasks[0].weight == 1.0
        assert experiment.model.levels[0].hidden == trial.values["model.levels.0.hidden"]
        assert not experiment.tune.parameters


def test_more_trials_and_another_order_keep_the_earlier_ones(searched: Build) -> None:
    both = {RATE: LOG, "tasks.like.weight": {"low": 0.5, "high": 2.0}}
    few = plan_trials(searched({"parameters": both, "trials": 3}), "digest")
    turned = dict(reversed(both.items()))
    many = plan_trials(searched({"parameters": turned, "trials": 5, "seed": 0}), "digest")
    assert [trial.spec.key for trial in few] == [trial.spec.key for trial in many[:3]]
    other = plan_trials(searched({"parameters": both, "trials": 3, "seed": 1}), "digest")
    assert few[0].spec.key == other[0].spec.key
    assert few[1].spec.key != other[1].spec.key


def test_whole_numbers_reach_both_ends(searched: Build) -> None:
    tune = {"parameters": {"train.epochs": {"low": 2, "high": 4}}, "trials": 4}
    trials = plan_trials(searched(tune), "digest")
    assert trials[0].values == {"train.epochs": 1}
    assert sorted(values_of(trials[1:], "train.epochs")) == [2, 3, 4]


def test_a_grid_has_every_combination(searched: Build) -> None:
    parameters = {RATE: {"values": [0.1, 0.2]}, "train.epochs": {"values": [1, 2, 3]}}
    trials = plan_trials(searched({"parameters": parameters, "search": "grid"}), "digest")
    assert [tuple(t.values.values()) for t in trials] == [
        *((0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1), (0.2, 2), (0.2, 3))
    ]
    assert [t.number for t in trials] == list(range(6))
    assert len({t.spec.key for t in trials}) == 6


def test_trials_keep_the_weights_that_the_search_judges_by(searched: Build) -> None:
    tune = {"parameters": {RATE: LOG}, "trials": 2, "metric": "like/logloss"}
    for trial in plan_trials(searched(tune), "digest"):
        assert trial.experiment.train.early_stopping.metric == "like/logloss"


def test_kinds_may_be_tried_and_keep_their_own_defaults(searched: Build) -> None:
    tune = {"parameters": {"model.kind": {"values": ["adatt", "cgc"]}}, "search": "grid"}
    kinds = [trial.experiment.model.kind for trial in plan_trials(searched(tune), "digest")]
    assert kinds == ["adatt", "cgc"]
    # What the file leaves out is not taken as set: cgc wants to be told.
    model = {"kind": "adatt", "levels": [{"task_experts": 1, "hidden": [8]}], "tower_hidden": [4]}
    with pytest.raises(ConfigError, match=r"trial 1 .*shared_experts is missing"):
        plan_trials(searched(tune, model=model), "digest")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dense_optimizer.learning_rat", "nearest valid key: learning_rate"),
        ("dense_optimiser.learning_rate", "nearest valid key: dense_optimizer"),
        ("tasks.lick.weight", "'lick' is neither a position"),
        ("data.path", "needs another dataset"),
        ("data.splits.train", "needs another dataset"),
        ("tasks.like.negatives_kept", "needs another dataset"),
        ("tasks.like.label", "what is predicted"),
        ("train.seed", "a seed is no setting"),
        ("train.evaluate_every", "how trials are judged"),
        ("mlflow.alias", "does not decide what a model learns"),
        ("evaluation.group_by", "how trials are judged"),
        ("tune.seed", "does not decide"),
    ],
)
def test_keys_that_cannot_be_searched(searched: Build, key: str, message: str) -> None:
    tune = {"parameters": {key: {"low": 0.1, "high": 0.2}}, "trials": 2}
    with pytest.raises(ConfigError, match=r"tune\.parameters") as error:
        plan_trials(searched(tune), "digest")
    assert message in str(error.value)
    assert key in str(error.value)


def test_one_bad_trial_is_refused_before_any_runs(searched: Build) -> None:
    parameters = {"train.epochs": {"values": [2, 0]}, RATE: {"values": [0.1]}}
    with pytest.raises(ConfigError, match=r"trial 1 \(train.epochs=0.*greater than 0"):
        plan_trials(searched({"parameters": parameters, "search": "grid"}), "digest")


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({}, "nothing to search"),
        ({"parameters": {RATE: {"values": [0.1, 0.2]}}, "trials": 9}, "lower tune.trials"),
        ({"parameters": {RATE: {"values": [0.1]}}, "search": "grid"}, "no search"),
        ({"parameters": {RATE: LOG}, "metric": "click/aux"}, "tune.metric: 'click/aux'"),
        ({"parameters": {RATE: LOG}, "metric": "test/click/auc"}, "is none of"),
        ({"parameters": {RATE: LOG}, "early_stopping": {}}, "tune.early_stopping.grace"),
        (
            {"parameters": {"tasks.like.weight": LOG}, "metric": "joint_loss"},
            "joint_loss is weighted by it",
        ),
    ],
)
def test_searches_without_sense(searched: Build, tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_trials(searched(tune), "digest")
    assert message in str(error.value)


def test_a_mapping_of_a_warm_start_is_refused(searched: Build) -> None:
    tune = {"parameters": {RATE: LOG}, "trials": 2}
    with pytest.raises(ConfigError, match="init: has no effect on trials"):
        plan_trials(searched(tune, init={"tasks": {"click": None}}), "digest")


def test_batches_of_different_rows_are_not_judged_by_steps(searched: Build) -> None:
    tune = {"parameters": {"data.batch_size": {"values": [64, 128]}}, "trials": 3}
    plan_trials(searched(tune, train={"evaluate_every": 5}), "digest")
    with pytest.raises(ConfigError, match="different numbers of rows"):
        plan_trials(searched(tune | {"early_stopping": {}}, train={"evaluate_every": 5}), "digest")


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"parameters": {RATE: {"low": 2, "high": 1}}}, "must be below"),
        ({"parameters": {RATE: {"low": 0, "high": 1, "scale": "log"}}}, "above 0"),
        ({"parameters": {RATE: {"low": 1}}}, "`low` and `high`"),
        ({"parameters": {RATE: {"values": []}}}, "empty"),
        ({"parameters": {RATE: {"values": [1, 1]}}}, "twice"),
        ({"parameters": {RATE: {"values": [1], "scale": "log"}}}, "not both"),
        ({"parameters": {RATE: {"lo": 1, "high": 2}}}, "nearest valid key: low"),
        ({"parameters": {RATE: LOG}, "search": "grid"}, "needs `values`"),
        ({"search": "grid", "trials": 4}, "`trials` has no effect"),
        ({"search": "grid", "seed": 4}, "`seed` has no effect"),
        ({"trials": 1}, "greater than or equal to 2"),
        ({"early_stopping": {"factor": 1}}, "greater than or equal to 2"),
    ],
)
def test_a_section_that_says_nothing_useful(
    searched: Build, tune: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match="tune") as error:
        searched(tune)
    assert message in str(error.value)


def test_an_override_may_name_a_parameter(searched: Build) -> None:
    tree = searched({}).model_dump(mode="json", exclude_unset=True)
    apply_override(tree, f"tune.parameters.{RATE}={{low: 0.1, high: 0.2}}")
    apply_override(tree, "tune.parameters.features.embedding_dim={values: [4, 8]}")
    assert set(parse_experiment(tree).tune.parameters) == {RATE, "features.embedding_dim"}
