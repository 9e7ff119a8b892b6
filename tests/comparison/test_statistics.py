"""Statistics of made-up results whose numbers are worked by hand."""

import pytest

from pipeline.comparison.statistics import TaskMetric, differences, outcomes, summary_tree

CLICK = TaskMetric("click", "auc", higher_is_better=True, ceiling=0.80)
WATCH = TaskMetric("watch", "rmse", higher_is_better=False)

# PLE gains .02, .04, .06 AUC and 0.1, 0.2, 0.3 RMSE; MMoE gains .01 on every seed of click.
OBSERVED = {
    "single_task": {
        "click": {0: 0.70, 1: 0.70, 2: 0.70},
        "watch": {0: 2.0, 1: 2.0, 2: 2.0},
    },
    "mmoe": {
        "click": {0: 0.71, 1: 0.71, 2: 0.71},
        "watch": {0: 2.1, 1: 2.0, 2: 1.9},
    },
    "ple": {
        "click": {0: 0.72, 1: 0.74, 2: 0.76},
        "watch": {0: 1.9, 1: 1.8, 2: 1.7},
    },
}
T2 = 4.3026527  # t(2, 97.5 %)


def test_gain_over_single_task_is_paired_and_signed() -> None:
    ple = outcomes(OBSERVED, [CLICK, WATCH])["ple"].tasks
    # Differences .02, .04, .06: mean .04, s = .02, half = T2·.02/√3.
    click = ple["click"].gain
    assert click is not None
    assert click.mean == pytest.approx(0.04)
    assert click.low == pytest.approx(0.04 - T2 * 0.02 / 3**0.5, abs=1e-7)
    assert click.high == pytest.approx(0.04 + T2 * 0.02 / 3**0.5, abs=1e-7)
    # RMSE falls, so the gain is positive.
    watch = ple["watch"].gain
    assert watch is not None
    assert watch.mean == pytest.approx(0.2)
    assert watch.low == pytest.approx(0.2 - T2 * 0.1 / 3**0.5, abs=1e-7)


def test_mean_deviation_and_gap() -> None:
    ple = outcomes(OBSERVED, [CLICK, WATCH])["ple"].tasks
    assert ple["click"].mean == pytest.approx(0.74)
    assert ple["click"].deviation == pytest.approx(0.02)
    # Single-task lies .10 below the ceiling, PLE .06: 40 % of the gap is closed.
    assert ple["click"].gap == pytest.approx(0.06)
    assert ple["click"].gap_closed == pytest.approx(0.4)
    assert ple["watch"].gap is None


def test_best_other_kind_respects_the_direction() -> None:
    result = outcomes(OBSERVED, [CLICK, WATCH])
    assert result["ple"].tasks["click"].best_other == "mmoe"
    assert result["mmoe"].tasks["click"].best_other == "ple"
    assert result["mmoe"].tasks["watch"].best_other == "ple"
    assert result["single_task"].tasks["watch"].best_other == "ple"
    against = result["ple"].tasks["click"].against_best
    assert against is not None
    assert against.mean == pytest.approx(0.03)  # .01, .03, .05 over MMoE


def test_mtl_gain_is_the_mean_relative_gain_by_seed() -> None:
    gain = outcomes(OBSERVED, [CLICK, WATCH])["ple"].mtl_gain
    assert gain is not None
    # Seed 0: (.02/.70 + .1/2)/2 and so on.
    by_seed = [(0.02 / 0.7 + 0.05) / 2, (0.04 / 0.7 + 0.10) / 2, (0.06 / 0.7 + 0.15) / 2]
    spread = (0.02 / 0.7 + 0.05) / 2  # the step from seed to seed, so also s
    assert gain.mean == pytest.approx(sum(by_seed) / 3)
    assert gain.low == pytest.approx(gain.mean - T2 * spread / 3**0.5, abs=1e-7)
    single = outcomes(OBSERVED, [CLICK, WATCH])["single_task"].mtl_gain
    assert single is not None
    assert (single.mean, single.low, single.high) == (0.0, 0.0, 0.0)


def test_p_values_are_corrected_over_kinds_and_tasks() -> None:
    result = outcomes(OBSERVED, [CLICK, WATCH])
    # MMoE's equal gains of .01 have no spread, p = 0 (up to rounding): times 4 it stays there.
    click = result["ple"].tasks["click"]
    assert click.gain is not None
    # t = .04/(.02/√3) = 3.4641, ν = 2: p = .0742. PLE's two p-values are equal: the second and
    # third smallest of four, so both times 3.
    assert click.gain.p_value == pytest.approx(0.07418, abs=1e-5)
    assert click.corrected_p == pytest.approx(3 * 0.07418, abs=5e-5)
    assert result["ple"].tasks["watch"].corrected_p == pytest.approx(3 * 0.07418, abs=5e-5)
    assert result["single_task"].tasks["click"].corrected_p is None


def test_missing_runs_leave_the_pairs_both_have() -> None:
    observed = {
        "single_task": {"click": {0: 0.70, 1: 0.71}},
        "ple": {"click": {1: 0.72, 2: 0.90}},
    }
    gain = differences(observed, "ple", "single_task", CLICK)
    assert gain is not None
    assert (gain.pairs, gain.low) == (1, None)
    assert gain.mean == pytest.approx(0.01)
    outcome = outcomes(observed, [CLICK])["ple"].tasks["click"]
    assert outcome.mean == pytest.approx(0.81)
    assert outcome.corrected_p is None
    nothing = {"single_task": {"click": {0: 0.7}}, "ple": {"click": {1: 0.7}}}
    assert outcomes(nothing, [CLICK])["ple"].mtl_gain is None


def test_summary_has_the_promised_keys() -> None:
    tree = summary_tree(outcomes(OBSERVED, [CLICK, WATCH])["ple"].tasks["click"])
    assert tree["auc_mean"] == pytest.approx(0.74)
    assert tree["auc_std"] == pytest.approx(0.02)
    assert tree["mtl_gain"] == pytest.approx(0.04)
    assert tree["ci_low"] < 0.04 < tree["ci_high"]
    assert tree["auc_by_seed"] == {"0": 0.72, "1": 0.74, "2": 0.76}
    regression = summary_tree(outcomes(OBSERVED, [CLICK, WATCH])["ple"].tasks["watch"])
    assert regression["rmse_mean"] == pytest.approx(1.8)
    assert regression["higher_is_better"] is False
