"""The rules of `promotion`, each with its verdict and the figures behind it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config.promotion import PromotionConfig
from pipeline.promotion.outcome import Comparison, Difference, SliceResult, TaskResult


@dataclass(frozen=True)
class Verdict:
    """One rule on one subject.

    Attributes:
        rule: its name, as in the config where it is set there.
        subject: a task, ``task, column=value``, or ``artifact``.
        passed: whether it holds.
        found: the figures.
        limit: what it asks for.
        advice: where it fails, what to do about it.
    """

    rule: str
    subject: str
    passed: bool
    found: str
    limit: str
    advice: str = ""

    def tree(self) -> dict[str, Any]:
        return asdict(self)


def judge_rules(comparison: Comparison, settings: PromotionConfig) -> list[Verdict]:
    """Every rule that is on; without a champion those that need none."""
    verdicts = [v for task in comparison.tasks for v in _task_rules(task, comparison, settings)]
    verdicts += list(_slice_rules(comparison, settings))
    verdicts += list(_artifact_rules(comparison, settings))
    return verdicts


def failures(verdicts: list[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if not verdict.passed]


def _task_rules(
    task: TaskResult, comparison: Comparison, settings: PromotionConfig
) -> Iterator[Verdict]:
    yield _enough_rows(task, settings)
    unscored = int(task.candidate["non_finite"])
    yield Verdict(
        "finite scores",
        task.name,
        unscored == 0,
        f"{unscored:,} rows without a finite score or label",
        "none",
        "score them by hand to see which feature does it",
    )
    if task.is_binary:
        yield from _binary_rules(task, settings)
    if task.champion is not None:
        yield from _against_champion(task, settings)


def _enough_rows(task: TaskResult, settings: PromotionConfig) -> Verdict:
    found, limit = f"{task.rows:,} rows", f"at least {settings.min_rows:,}"
    passed = task.rows >= settings.min_rows
    if task.positives is not None:
        least = int(settings.limit("min_positives", task.name) or 0)
        negatives = task.rows - task.positives
        passed &= min(task.positives, negatives) >= least
        found += f", {task.positives:,} positives, {negatives:,} negatives"
        limit += f", {least:,} of each class"
    return Verdict("min_rows", task.name, passed, found, limit, "judge on more data")


def _binary_rules(task: TaskResult, settings: PromotionConfig) -> Iterator[Verdict]:
    least = settings.limit("min_auc", task.name)
    auc = task.candidate.get("auc")
    if least is not None:
        found = _undefined(task, "auc") if auc is None else f"{auc:.5f}{_ends(task.auc_interval)}"
        passed = auc is not None and auc >= least
        yield Verdict("min_auc", task.name, passed, found, f"at least {least:g}", "train it better")
    reach = settings.limit("max_calibration_error", task.name)
    if reach is None or not task.is_probability:
        return
    value = task.candidate.get("calibration")
    found = _undefined(task, "calibration")
    if value is not None:
        found = f"{value:.4f}{_ends(task.calibration_interval, 4)}"
    passed = value is not None and abs(value - 1) <= reach
    advice = "calibrate it on newer data, or set promotion.max_calibration_error"
    limit = f"{1 - reach:g} to {1 + reach:g}"
    yield Verdict("max_calibration_error", task.name, passed, found, limit, advice)


def _against_champion(task: TaskResult, settings: PromotionConfig) -> Iterator[Verdict]:
    drop = settings.limit("max_auc_drop", task.name)
    if task.is_binary and drop is not None:
        name, limit = "max_auc_drop", f"not below {-drop:+g}"
        if task.auc_difference is None:
            found = _undefined(task, "auc")
            yield Verdict(name, task.name, False, found, limit, "judge on more data")
        else:
            yield _judged(name, task.name, task.auc_difference, drop, limit, settings)
    rise = settings.limit("max_loss_rise", task.name)
    if rise is None:
        return
    name, limit = "max_loss_rise", f"{task.loss_name} not above {rise:+.2%}"
    if task.loss_rise is None:
        found = f"{task.loss_name} is undefined"
        yield Verdict(name, task.name, False, found, limit, "judge on more data")
    else:
        yield _judged(name, task.name, task.loss_rise, rise, limit, settings, rises=True)


def _judged(
    rule: str,
    subject: str,
    difference: Difference,
    limit: float,
    limit_text: str,
    settings: PromotionConfig,
    rises: bool = False,
) -> Verdict:
    """Whether a drop, or a rise, keeps its limit: the interval's worse end, or the mean."""
    sign = -1 if rises else 1
    found, shown = _shown(difference, rises), f"{limit_text} ({settings.judged_on})"
    gain, ends = sign * difference.value, difference.interval
    if settings.judged_on == "mean":
        passed = gain >= -limit
        advice = "it is worse than the champion" if not passed else ""
        return Verdict(rule, subject, passed, found, shown, advice)
    if ends is None:
        return Verdict(rule, subject, False, found, shown, "judge on more data")
    worst = min(sign * ends.low, sign * ends.high)
    if worst >= -limit:
        return Verdict(rule, subject, True, found, shown)
    if gain < -limit:
        return Verdict(rule, subject, False, found, shown, "it is worse than the champion")
    # The distance to the limit grows with nothing, the interval shrinks with √rows.
    room, reach = gain + limit, gain - worst
    more = f"about {(reach / room) ** 2:,.1f} times the rows would" if room > 0 else "no rows will"
    advice = f"not shown to be no worse: {more} tell; judge on more data, or raise promotion.{rule}"
    return Verdict(rule, subject, False, found, shown, advice)


def _slice_rules(comparison: Comparison, settings: PromotionConfig) -> Iterator[Verdict]:
    """One verdict per task and column, on the value that fares worst against its limit."""
    drop = settings.max_slice_auc_drop
    if drop is None:
        return
    groups: dict[tuple[str, str], list[SliceResult]] = {}
    for result in comparison.slices:
        groups.setdefault((result.task, result.column), []).append(result)
    for (task, column), results in groups.items():
        failed = [r for r in results if _best_case(r.difference) < -drop]
        shown = failed or [min(results, key=lambda r: r.difference.value)]
        found = "; ".join(f"{r.value}: {_shown(r.difference)}" for r in shown)
        if not failed:
            found = f"{len(results)} values, the lowest {found}"
        yield Verdict(
            "max_slice_auc_drop",
            f"{task} by {column}",
            not failed,
            found,
            f"no interval wholly below {-drop:+g}",
            "see what changed for these rows",
        )


def _artifact_rules(comparison: Comparison, settings: PromotionConfig) -> Iterator[Verdict]:
    champion, candidate = comparison.champion, comparison.candidate
    if champion is not None:
        missing = comparison.missing_tasks
        yield Verdict(
            "all tasks",
            "artifact",
            not missing,
            f"lacks {', '.join(missing)}" if missing else "has every task of the champion",
            "every task of the champion",
            "promote under another name, or train it with them",
        )
    if settings.max_p99_ms is not None:
        p99 = candidate.latency.p99_ms
        was = "" if champion is None else f" (champion {champion.latency.p99_ms:.2f} ms)"
        yield Verdict(
            "max_p99_ms",
            "artifact",
            p99 <= settings.max_p99_ms,
            f"{p99:.2f} ms for one row, {candidate.latency.calls:,} calls{was}",
            f"at most {settings.max_p99_ms:g} ms",
            "make the model smaller, or measure on a machine that is less busy",
        )
    if settings.max_size_ratio is not None and champion is not None:
        ratio = candidate.bytes / champion.bytes
        yield Verdict(
            "max_size_ratio",
            "artifact",
            ratio <= settings.max_size_ratio,
            f"{ratio:.2f} times the champion's ({candidate.bytes:,} bytes)",
            f"at most {settings.max_size_ratio:g} times",
            "quantise the tables, or raise promotion.max_size_ratio",
        )


def _best_case(difference: Difference) -> float:
    return difference.value if difference.interval is None else difference.interval.high


def _shown(difference: Difference, percent: bool = False) -> str:
    ends = difference.interval
    if percent:
        between = "" if ends is None else f" [{ends.low:+.3%}, {ends.high:+.3%}]"
        return f"{difference.value:+.3%}{between}"
    between = "" if ends is None else f" [{ends.low:+.5f}, {ends.high:+.5f}]"
    return f"{difference.value:+.5f}{between}"


def _ends(interval: Any, digits: int = 5) -> str:
    if interval is None:
        return ""
    return f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _undefined(task: TaskResult, metric: str) -> str:
    return f"undefined: {task.candidate.get(f'{metric}_undefined') or 'no rows'}"
