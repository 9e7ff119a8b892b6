"""What the evidence supports and what it does not, in sentences.

A claim needs an interval that excludes zero and a p-value that stays below 5 % after Holm's
correction over all comparisons of its family: every kind and task against single-task; every kind's
MTL gain; the reference kind against every other kind and task. With the first alone it is a hint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.comparison.paired import CONFIDENCE, PairedDifference, holm
from pipeline.comparison.statistics import (
    SINGLE_TASK,
    KindOutcome,
    Observed,
    TaskMetric,
    differences,
)
from pipeline.evaluation.intervals import auc_standard_error

SIGNIFICANT = 1 - CONFIDENCE
_FEW_SEEDS = 3
KIND_NAMES = {
    SINGLE_TASK: "single-task",
    "shared_bottom": "shared-bottom",
    "moe": "MoE",
    "mmoe": "MMoE",
    "cgc": "CGC",
    "ple": "PLE",
    "adatt": "AdaTT",
    "home": "HoME",
    "stem": "STEM",
}


@dataclass(frozen=True)
class Finding:
    """One sentence: a claim the evidence supports, the absence of one, or a caution."""

    nature: Literal["claim", "no claim", "caution"]
    text: str


@dataclass(frozen=True)
class _Judged:
    """A difference of two kinds on one task, with its p-value after correction."""

    metric: TaskMetric
    difference: PairedDifference
    corrected_p: float | None

    @property
    def verdict(self) -> str:
        """up, down, hint, none or unknown."""
        if self.corrected_p is None:
            return "unknown"
        if not self.difference.sign:
            return "none"
        if self.corrected_p >= SIGNIFICANT:
            return "hint"
        return "up" if self.difference.sign > 0 else "down"

    @property
    def amount(self) -> str:
        """``click by 0.0031 [0.0012, 0.0050]``, for a difference whose direction is said."""
        d = self.difference
        ends = sorted(abs(end) for end in (d.low, d.high) if end is not None)
        low, high = (number(end) for end in ends)
        unit = "" if self.metric.name == "auc" else f" {self.metric.name.upper()}"
        return f"{self.metric.task} by {number(abs(d.mean))}{unit} [{low}, {high}]"

    @property
    def shown(self) -> str:
        """``click (+0.0031 [+0.0012, +0.0050])``."""
        return f"{self.metric.task} ({interval_text(self.difference)})"


def findings(
    observed: Observed,
    kinds: Mapping[str, KindOutcome],
    metrics: Sequence[TaskMetric],
    reference: str,
) -> list[Finding]:
    """Sentences about every kind against single-task, and about `reference` against every other.

    Args:
        observed: the values behind `kinds`.
        kinds: outcomes by kind.
        metrics: the tasks, in order.
        reference: the kind the comparison is about.
    """
    said: list[Finding] = []
    judged_by_kind: dict[str, list[_Judged]] = {}
    for kind, outcome in kinds.items():
        if kind != SINGLE_TASK:
            judged = [
                _Judged(task.metric, task.gain, task.corrected_p)
                for task in outcome.tasks.values()
                if task.gain is not None
            ]
            judged_by_kind[kind] = judged
            said += _against_single(KIND_NAMES[kind], judged)
    said += _mtl_gains(kinds)
    if reference in kinds:
        said += _against_others(observed, kinds, metrics, reference)
    tested = sum(j.corrected_p is not None for judged in judged_by_kind.values() for j in judged)
    return said + _cautions(kinds, tested)


def _against_single(name: str, judged: Sequence[_Judged]) -> list[Finding]:
    if not judged:
        return [Finding("no claim", f"{name}: no single-task run to compare with.")]
    by = _by_verdict(judged)
    parts = []
    if by["up"]:
        parts.append(f"beats single-task on {_listed([j.amount for j in by['up']])}")
    if by["down"]:
        parts.append(f"falls below single-task on {_listed([j.amount for j in by['down']])}")
    opening = f"{name} " if parts else f"{name} against single-task: "
    said = [Finding(_nature(by), f"{opening}{'; '.join(parts + _weak_parts(by))}.")]
    if by["up"] and by["down"]:
        up, down = (_listed([j.metric.task for j in by[way]]) for way in ("up", "down"))
        said.append(Finding("claim", f"Seesaw: {name} gains on {up} and pays for it on {down}."))
    return said


def _mtl_gains(kinds: Mapping[str, KindOutcome]) -> list[Finding]:
    gains = {
        kind: outcome.mtl_gain
        for kind, outcome in kinds.items()
        if kind != SINGLE_TASK and outcome.mtl_gain is not None and len(outcome.tasks) > 1
    }
    known = {k: g.p_value for k, g in gains.items() if g.p_value is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    said = []
    for kind, gain in gains.items():
        text = f"MTL gain of {KIND_NAMES[kind]}, mean over tasks relative to single-task: "
        text += percent(gain)
        p = corrected.get(kind)
        if p is None:
            said.append(Finding("no claim", f"{text}; one pair gives no interval."))
        elif not gain.sign:
            said.append(Finding("no claim", f"{text}; the interval includes 0: no claim."))
        elif p >= SIGNIFICANT:
            said.append(
                Finding(
                    "no claim",
                    f"{text}; a hint, no claim: p = {p:.2g} after Holm's correction for "
                    f"{len(known)} kinds.",
                )
            )
        elif gain.sign > 0:
            said.append(Finding("claim", f"{text}, above zero."))
        else:
            said.append(
                Finding("claim", f"{text}, below zero: separate models are better on average.")
            )
    return said


def _against_others(
    observed: Observed,
    kinds: Mapping[str, KindOutcome],
    metrics: Sequence[TaskMetric],
    reference: str,
) -> list[Finding]:
    """How the reference stands to each other kind, corrected over all of them."""
    pairs = [
        (other, metric, difference)
        for other in kinds
        if other != reference
        for metric in metrics
        if (difference := differences(observed, reference, other, metric)) is not None
    ]
    known = [d.p_value for _, _, d in pairs if d.p_value is not None]
    corrected = iter(holm(known))
    by_kind: dict[str, list[_Judged]] = {}
    for other, metric, difference in pairs:
        p = None if difference.p_value is None else next(corrected)
        by_kind.setdefault(other, []).append(_Judged(metric, difference, p))
    return [_between(reference, other, judged) for other, judged in by_kind.items()]


def _between(reference: str, other: str, judged: Sequence[_Judged]) -> Finding:
    mine, theirs = KIND_NAMES[reference], KIND_NAMES[other]
    by = _by_verdict(judged)
    if len(by["none"]) == len(judged):
        return Finding(
            "no claim",
            f"{theirs} is level with {mine} as far as these runs tell: in every task the interval "
            f"of their difference includes 0. Nothing here speaks for {mine} over {theirs}.",
        )
    parts = []
    if by["up"]:
        parts.append(f"better on {_listed([j.amount for j in by['up']])}")
    if by["down"]:
        parts.append(f"worse on {_listed([j.amount for j in by['down']])}")
    return Finding(_nature(by), f"{mine} against {theirs}: {'; '.join(parts + _weak_parts(by))}.")


def _weak_parts(by: Mapping[str, Sequence[_Judged]]) -> list[str]:
    parts = []
    for j in by["hint"]:
        parts.append(
            f"on {j.shown} a hint, no claim, p = {j.corrected_p:.2g} after Holm's correction"
        )
    if by["none"]:
        shown = _listed([j.shown for j in by["none"]])
        verb = "interval includes" if len(by["none"]) == 1 else "intervals include"
        parts.append(f"on {shown} the {verb} 0, no claim")
    if by["unknown"]:
        parts.append(f"on {_listed([j.shown for j in by['unknown']])} one pair, so no interval")
    return parts


def _by_verdict(judged: Sequence[_Judged]) -> dict[str, list[_Judged]]:
    verdicts = ("up", "down", "hint", "none", "unknown")
    return {verdict: [j for j in judged if j.verdict == verdict] for verdict in verdicts}


def _nature(by: Mapping[str, Sequence[_Judged]]) -> Literal["claim", "no claim"]:
    return "claim" if by["up"] or by["down"] else "no claim"


def _cautions(kinds: Mapping[str, KindOutcome], tested: int) -> list[Finding]:
    said = []
    seeds = min(len(task.values) for kind in kinds.values() for task in kind.tasks.values())
    if seeds < 2:
        said.append("With one seed there is no spread to judge by: run at least 3, better 5.")
    elif seeds < _FEW_SEEDS:
        said.append(
            "With 2 seeds an interval reaches 12.7 standard errors to either side: run at least 3, "
            "better 5."
        )
    if tested > 1:
        chance = 1 - CONFIDENCE**tested
        said.append(
            f"{tested} intervals against single-task are read at once: if no kind differed from "
            f"it, the chance that some interval excludes 0 would still be up to {chance:.0%}. "
            "Claims are therefore judged by p-values after Holm's correction; the intervals "
            "themselves are not corrected."
        )
    said.append(
        "The best other kind is picked by the same runs, which flatters it: read that difference "
        "as a description."
    )
    said.append(
        "The intervals hold the variation of training (initial weights, order of rows). They do "
        "not hold that of the test rows, which are the same in every run."
    )
    return [Finding("caution", text) for text in said]


def row_caution(task: str, auc: float, positives: int, negatives: int) -> str:
    """How far an AUC would move on other test rows (Hanley and McNeil, 1982, equation 2)."""
    error = auc_standard_error(auc, positives, negatives)
    return (
        f"{task}: on other rows the AUC itself would move by about ±{1.96 * error:.4f} "
        f"({positives:,} positives); paired differences move less."
    )


def interval_text(difference: PairedDifference) -> str:
    """``+0.0031 [+0.0012, +0.0050]``."""
    if difference.low is None or difference.high is None:
        return signed(difference.mean)
    return f"{signed(difference.mean)} [{signed(difference.low)}, {signed(difference.high)}]"


def percent(gain: PairedDifference) -> str:
    """``+0.42% [+0.10%, +0.74%]``."""
    ends = "" if gain.low is None or gain.high is None else f" [{gain.low:+.2%}, {gain.high:+.2%}]"
    return f"{gain.mean:+.2%}{ends}"


def signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + number(abs(value))


def number(value: float) -> str:
    """Four decimals, or four digits where the number is large."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
