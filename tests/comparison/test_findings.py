"""Sentences about made-up results: what is claimed, what is only a hint, what is not said."""

import pytest

from pipeline.comparison.findings import Finding, findings, number, row_caution
from pipeline.comparison.statistics import TaskMetric, outcomes

CLICK, LIKE = TaskMetric("click", "auc", True), TaskMetric("like", "auc", True)
SEEDS = range(5)
SINGLE = {
    "click": dict(zip(SEEDS, (0.7000, 0.7010, 0.6990, 0.7005, 0.6995), strict=True)),
    "like": dict(zip(SEEDS, (0.6000, 0.6020, 0.5980, 0.6010, 0.5990), strict=True)),
}


def shifted(task: str, *gains: float) -> dict[int, float]:
    return {seed: SINGLE[task][seed] + gain for seed, gain in zip(SEEDS, gains, strict=True)}


# Mean .0031, deviation .0002: far from zero. Mean 0 with spread: nothing.
CLEAR = (0.0029, 0.0030, 0.0031, 0.0032, 0.0033)
NOISE = (0.0020, -0.0020, 0.0010, -0.0010, 0.0000)
# Mean .0020, deviation .00158, t = 2.83, p = .047.
WEAK = (0.0000, 0.0010, 0.0020, 0.0030, 0.0040)


def said(**kinds: dict[str, dict[int, float]]) -> list[Finding]:
    observed = {"single_task": SINGLE, **kinds}
    metrics = [CLICK, LIKE]
    return findings(observed, outcomes(observed, metrics), metrics, "ple")


def sentence(found: list[Finding], start: str) -> Finding:
    return next(finding for finding in found if finding.text.startswith(start))


def test_a_claim_and_the_absence_of_one() -> None:
    found = said(ple={"click": shifted("click", *CLEAR), "like": shifted("like", *NOISE)})
    finding = sentence(found, "PLE beats")
    # s = .000158, standard error .0000707, half = 2.776 of it = .0002.
    assert finding == Finding(
        "claim",
        "PLE beats single-task on click by 0.0031 [0.0029, 0.0033]; on like (+0.0000 [-0.0020, "
        "+0.0020]) the interval includes 0, no claim.",
    )


def test_a_loss_and_the_seesaw() -> None:
    losses = [-gain for gain in CLEAR]
    found = said(ple={"click": shifted("click", *CLEAR), "like": shifted("like", *losses)})
    assert "falls below single-task on like by 0.0031 [0.0029, 0.0033]" in found[0].text
    seesaw = sentence(found, "Seesaw")
    assert seesaw == Finding("claim", "Seesaw: PLE gains on click and pays for it on like.")


def test_what_does_not_survive_the_correction_is_a_hint() -> None:
    found = said(ple={"click": shifted("click", *WEAK), "like": shifted("like", *NOISE)})
    finding = found[0]
    assert finding.nature == "no claim"
    # t = .0020/(.001581/√5) = 2.8284, ν = 4: p = .0474, twice that after correction.
    assert finding.text.startswith(
        "PLE against single-task: on click (+0.0020 [+0.0000, +0.0040]) a hint, no claim, "
        "p = 0.095 after Holm's correction"
    )


def test_level_kinds_are_named() -> None:
    found = said(
        mmoe={"click": shifted("click", *NOISE), "like": shifted("like", *NOISE)},
        ple={"click": shifted("click", *NOISE[::-1]), "like": shifted("like", *NOISE)},
    )
    for other in ("single-task", "MMoE"):
        finding = sentence(found, f"{other} is level with PLE")
        assert finding.nature == "no claim"
        assert f"Nothing here speaks for PLE over {other}" in finding.text


def test_the_reference_against_another_kind() -> None:
    found = said(
        mmoe={"click": shifted("click", *NOISE), "like": SINGLE["like"]},
        ple={"click": shifted("click", *(0.03 + gain for gain in CLEAR)), "like": SINGLE["like"]},
    )
    finding = sentence(found, "PLE against MMoE")
    assert finding.nature == "claim"
    assert "better on click by 0.0331" in finding.text
    assert "on like (+0.0000 [+0.0000, +0.0000]) the interval includes 0" in finding.text


def test_mtl_gain_in_words() -> None:
    up = said(ple={"click": shifted("click", *CLEAR), "like": shifted("like", *CLEAR)})
    finding = sentence(up, "MTL gain of PLE")
    assert finding.nature == "claim"
    # (.0031/.7 + .0031/.6)/2 = .480 %.
    assert "+0.48% [" in finding.text
    assert finding.text.endswith("above zero.")
    flat = said(ple={"click": shifted("click", *NOISE), "like": shifted("like", *NOISE)})
    assert sentence(flat, "MTL gain of PLE").nature == "no claim"


def test_one_seed_supports_nothing() -> None:
    observed = {
        "single_task": {"click": {0: 0.7}, "like": {0: 0.6}},
        "ple": {"click": {0: 0.8}, "like": {0: 0.7}},
    }
    metrics = [CLICK, LIKE]
    found = findings(observed, outcomes(observed, metrics), metrics, "ple")
    assert not [finding for finding in found if finding.nature == "claim"]
    assert any("With one seed" in finding.text for finding in found)


def test_many_comparisons_are_warned_of() -> None:
    found = said(
        mmoe={"click": shifted("click", *NOISE), "like": shifted("like", *NOISE)},
        ple={"click": shifted("click", *CLEAR), "like": shifted("like", *NOISE)},
    )
    caution = next(finding for finding in found if finding.nature == "caution")
    # 1 − .95⁴ = 18.5 %.
    assert caution.text.startswith("4 intervals against single-task")
    assert "up to 19%" in caution.text


def test_test_rows_leave_an_auc_open() -> None:
    # Hanley and McNeil at AUC .8, 100 and 100: Q1 = .66667, Q2 = .71111,
    # (.16 + 2.64 + 7.04)/10⁴ = .000984, standard error .031369, times 1.96 = .0615.
    assert "±0.0615 (100 positives)" in row_caution("click", 0.8, 100, 100)


@pytest.mark.parametrize(("value", "text"), [(0.00312, "0.0031"), (1234.5678, "1235")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
