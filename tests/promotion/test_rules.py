"""The rules, one figure at a time."""

from dataclasses import replace

import pytest

from pipeline.config.promotion import PromotionConfig
from pipeline.promotion.bootstrap import Interval
from pipeline.promotion.outcome import (
    Comparison,
    Difference,
    Latency,
    SliceResult,
    TaskResult,
    VersionFacts,
)
from pipeline.promotion.rules import failures, judge_rules

SETTINGS = PromotionConfig()


def binary(**changes):
    metrics = {"auc": 0.75, "calibration": 1.005, "logloss": 0.5, "non_finite": 0}
    metrics |= {"rows": 10_000, "positives": 900}
    task = TaskResult(
        name="click",
        is_binary=True,
        is_probability=True,
        loss_name="log loss",
        rows=10_000,
        positives=900,
        candidate=metrics,
        champion=metrics,
        auc_interval=Interval(0.74, 0.76),
        calibration_interval=Interval(0.9, 1.1),
        auc_difference=Difference(0.001, Interval(-0.0004, 0.0024)),
        loss_rise=Difference(-0.002, Interval(-0.01, 0.006)),
    )
    candidate = metrics | changes.pop("candidate", {})
    return replace(task, candidate=candidate, **changes)


def compared(*tasks, slices=(), champion=True, **changes):
    facts = VersionFacts("shop", "2", 1000, Latency(500, 2.0, 5.0))
    comparison = Comparison(
        candidate=facts,
        champion=replace(facts, version="1") if champion else None,
        data="test split",
        rows=10_000,
        bootstrap="",
        tasks=tasks,
        slices=slices,
    )
    return replace(comparison, **changes)


def failed(comparison, **settings):
    verdicts = judge_rules(comparison, SETTINGS.model_copy(update=settings))
    return [(v.rule, v.subject) for v in failures(verdicts)]


def test_a_version_that_keeps_every_limit_passes():
    verdicts = judge_rules(compared(binary()), SETTINGS)
    assert not failures(verdicts)
    assert [v.rule for v in verdicts] == [
        "min_rows",
        "finite scores",
        "min_auc",
        "max_calibration_error",
        "max_auc_drop",
        "max_loss_rise",
        "all tasks",
        "max_p99_ms",
        "max_size_ratio",
    ]
    assert verdicts[4].found == "+0.00100 [-0.00040, +0.00240]"
    assert verdicts[4].limit == "not below -0.0005 (interval)"


DROP = ("max_auc_drop", "click")
RISE = ("max_loss_rise", "click")


@pytest.mark.parametrize(
    ("difference", "interval", "mean"),
    [
        (Difference(0.001, Interval(-0.0005, 0.003)), [], []),
        (Difference(0.001, Interval(-0.00051, 0.003)), [DROP], []),
        (Difference(-0.0005, Interval(-0.002, 0.001)), [DROP], []),
        (Difference(-0.0006, Interval(-0.002, 0.001)), [DROP], [DROP]),
        (Difference(-0.01, Interval(-0.012, -0.008)), [DROP], [DROP]),
        (Difference(0.001, None), [DROP], []),
    ],
)
def test_auc_is_judged_on_the_lower_end_or_on_the_mean(difference, interval, mean):
    comparison = compared(binary(auc_difference=difference))
    assert failed(comparison) == interval
    assert failed(comparison, judged_on="mean") == mean
    assert failed(comparison, max_auc_drop=None) == []


@pytest.mark.parametrize(
    ("difference", "interval", "mean"),
    [
        (Difference(-0.01, Interval(-0.05, 0.01)), [], []),
        (Difference(-0.01, Interval(-0.05, 0.011)), [RISE], []),
        (Difference(0.02, Interval(0.0, 0.04)), [RISE], [RISE]),
        (None, [RISE], [RISE]),
    ],
)
def test_loss_is_judged_on_the_upper_end_or_on_the_mean(difference, interval, mean):
    comparison = compared(binary(loss_rise=difference))
    assert failed(comparison) == interval
    assert failed(comparison, judged_on="mean") == mean


def test_what_is_not_shown_names_the_rows_it_would_take():
    difference = Difference(0.0, Interval(-0.001, 0.001))
    verdicts = judge_rules(compared(binary(auc_difference=difference)), SETTINGS)
    # The interval must become half as wide: four times the rows.
    assert "about 4.0 times the rows would tell" in failures(verdicts)[0].advice
    worse = Difference(-0.01, Interval(-0.02, 0.0))
    verdicts = judge_rules(compared(binary(auc_difference=worse)), SETTINGS)
    assert failures(verdicts)[0].advice == "it is worse than the champion"


@pytest.mark.parametrize("value", [0.979, 1.021, None])
def test_calibration_must_be_close_to_one(value):
    task = binary(candidate={"calibration": value, "calibration_undefined": "no positives"})
    assert failed(compared(task)) == [("max_calibration_error", "click")]
    assert failed(compared(replace(task, is_probability=False))) == []
    assert failed(compared(task), max_calibration_error=None) == []


def test_rows_and_both_classes_must_be_enough():
    assert failed(compared(binary(rows=999))) == [("min_rows", "click")]
    assert failed(compared(binary(positives=99))) == [("min_rows", "click")]
    assert failed(compared(binary(positives=9_950))) == [("min_rows", "click")]
    assert failed(compared(binary(positives=99)), min_positives=99) == []


def test_absolute_rules_hold_without_a_champion():
    first = binary(champion=None, auc_difference=None, loss_rise=None)
    comparison = compared(first, champion=False)
    rules = [v.rule for v in judge_rules(comparison, SETTINGS)]
    assert rules == ["min_rows", "finite scores", "min_auc", "max_calibration_error", "max_p99_ms"]
    assert failed(comparison, min_auc=0.76) == [("min_auc", "click")]
    assert failed(comparison, max_p99_ms=4.9) == [("max_p99_ms", "artifact")]
    spoilt = compared(binary(candidate={"non_finite": 1}), champion=False)
    assert ("finite scores", "click") in failed(spoilt)


def test_artifact_rules():
    large = VersionFacts("shop", "2", 2001, Latency(500, 2.0, 5.0))
    assert failed(compared(binary(), candidate=large)) == [("max_size_ratio", "artifact")]
    lacking = compared(binary(), missing_tasks=("buy",))
    assert failed(lacking) == [("all tasks", "artifact")]


def test_a_slice_fails_where_its_whole_interval_is_beyond_the_limit():
    def slices(low, high):
        def one(value, a, b):
            middle = Difference((a + b) / 2, Interval(a, b))
            return SliceResult("click", "device", value, 500, 200, 0.7, 0.71, middle)

        return one("phone", -0.02, 0.02), one("tv", low, high)

    assert failed(compared(binary(), slices=slices(-0.02, -0.005))) == []
    broken = compared(binary(), slices=slices(-0.02, -0.0051))
    assert failed(broken) == [("max_slice_auc_drop", "click by device")]
    assert failed(broken, max_slice_auc_drop=None) == []
    found = failures(judge_rules(broken, SETTINGS))[0].found
    assert found.startswith("tv: ")
    assert "phone" not in found


def test_a_task_may_have_limits_of_its_own():
    task = binary(auc_difference=Difference(-0.001, Interval(-0.002, 0.0)))
    assert failed(compared(task)) == [DROP]
    own = PromotionConfig.model_validate({"tasks": {"click": {"max_auc_drop": 0.002}}}).tasks
    assert failed(compared(task), tasks=own) == []
    assert failed(compared(replace(task, name="buy")), tasks=own) == [("max_auc_drop", "buy")]


def test_other_tasks_are_judged_by_their_loss():
    metrics = {"rmse": 1.0, "rows": 10_000, "non_finite": 0}
    task = replace(
        binary(), is_binary=False, is_probability=False, positives=None, auc_difference=None
    )
    task = replace(task, loss_name="squared error", candidate=metrics, champion=metrics)
    verdicts = judge_rules(compared(task), SETTINGS)
    assert [v.rule for v in verdicts][:3] == ["min_rows", "finite scores", "max_loss_rise"]
    assert verdicts[2].limit == "squared error not above +1.00% (interval)"
