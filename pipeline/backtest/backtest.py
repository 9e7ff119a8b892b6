"""A backtest: every version on every day, and how far each day is from training.

Days are read one after the other and each version keeps one set of metrics, so memory does not
grow with the number of rows nor of days.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.backtest.drift import DriftCounter, FeatureDrift
from pipeline.backtest.judging import Judge
from pipeline.backtest.raw_rows import RawRows, open_rows
from pipeline.backtest.skipped_rows import SkippedRows
from pipeline.backtest.versions import LoadedVersion, VersionError, load_version
from pipeline.config import Experiment
from pipeline.config.backtest import BacktestConfig
from pipeline.config.load import with_absolute_paths
from pipeline.console import RunConsole
from pipeline.data.losses import Loss
from pipeline.evaluation.metrics import Metrics
from pipeline.registry.client import resolve_version
from pipeline.registry.reference import REFERENCE_FILE, Reference
from pipeline.registry.uris import tracking_uri


@dataclass(frozen=True)
class DayResult:
    """One day (or all rows).

    Attributes:
        day: YYYY-MM-DD, or ``all rows``.
        rows: judged.
        lost: rows that could not be used.
        metrics: by version, then by task.
        drift: by version; None where its artifact has no reference.
    """

    day: str
    rows: int
    lost: int
    metrics: dict[str, dict[str, Metrics]]
    drift: dict[str, list[FeatureDrift] | None]


@dataclass(frozen=True)
class Backtest:
    """What a backtest found.

    Attributes:
        versions: URIs as numbers (``models:/NAME/7``), in the order asked for.
        data: which rows, in words.
        days: in order.
        notes: what must be known to read the figures.
        losses: rows that could not be used, by file, row group and kind of fault.
    """

    versions: tuple[str, ...]
    data: str
    days: tuple[DayResult, ...]
    notes: tuple[str, ...]
    losses: tuple[Loss, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """Tasks of any version, in order."""
        first = self.days[0].metrics.values()
        return list(dict.fromkeys(task for by_task in first for task in by_task))

    def summary(self) -> dict[str, Any]:
        """As plain JSON (``--summary``)."""
        return asdict(self)


def backtest(experiment: Experiment, model_uris: Sequence[str], console: RunConsole) -> Backtest:
    """Judges versions day by day.

    Args:
        experiment: says which MLflow, and in ``backtest`` which rows.
        model_uris: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        console: hears where it is.

    Raises:
        ConfigError, DatasetError, TrackingError, VersionError: it cannot be done.
    """
    experiment = with_absolute_paths(experiment)
    settings, uri = experiment.backtest, tracking_uri(experiment)
    numbered = []
    for model_uri in model_uris:
        name, number = resolve_version(uri, model_uri)
        numbered.append(f"models:/{name}/{number}")
    repeated = {u for u in numbered if numbered.count(u) > 1}
    if repeated:
        raise VersionError(f"--model: {', '.join(sorted(repeated))} is asked for more than once")
    with tempfile.TemporaryDirectory(prefix="ple-backtest-") as folder:
        versions = [
            load_version(uri, model_uri, Path(folder) / str(number))
            for number, model_uri in enumerate(numbered)
        ]
        references = [Reference.load(version.bundle) for version in versions]
        rows = open_rows(experiment, settings, "backtest", settings.day_column, settings.max_days)
        console.note(f"{', '.join(numbered)} on {rows.description}")
        skipped = SkippedRows(rows.name, rows.faults)
        judge = Judge(versions, skipped, sampled=settings.split == "train")
        days = _days(rows, judge, references, settings, console)
    notes = (*skipped.remarks(), *judge.remarks, *_notes(versions, references))
    losses = tuple(skipped.losses)
    return Backtest(tuple(numbered), rows.description, days, notes, losses)


def _days(
    rows: RawRows,
    judge: Judge,
    references: Sequence[Reference | None],
    settings: BacktestConfig,
    console: RunConsole,
) -> tuple[DayResult, ...]:
    versions = judge.versions
    counters = [None if r is None or not r.rows else DriftCounter(r) for r in references]
    found = []
    with console:
        for number, day in enumerate(rows.periods, start=1):
            for batch in rows.batches(judge.columns, day, judge.skipped):
                usable = judge.add(batch).batch
                for counter in counters:
                    if counter is not None:
                        counter.add(usable)
                console.status(f"{day} ({number}/{len(rows.periods)}): {judge.rows:,} rows")
            metrics = dict(zip([v.uri for v in versions], judge.compute(), strict=True))
            drift = {
                version.uri: None if counter is None else counter.drift(settings)
                for version, counter in zip(versions, counters, strict=True)
            }
            lost = judge.skipped.lost_in_period
            found.append(DayResult(day, judge.rows, lost, metrics, drift))
            judge.reset()
            for counter in counters:
                if counter is not None:
                    counter.reset()
    return tuple(found)


def _notes(versions: Sequence[LoadedVersion], references: Sequence[Reference | None]) -> list[str]:
    notes = []
    for version, reference in zip(versions, references, strict=True):
        if reference is None or not reference.rows:
            notes.append(
                f"{version.uri} has no {REFERENCE_FILE} with how its features were distributed in "
                "training, so its drift is not known; register it again to have it."
            )
        else:
            unread = f" ({reference.unread} row groups unread)" if reference.unread else ""
            notes.append(
                f"Drift of {version.uri} is against {reference.rows:,} rows of its train split"
                f"{unread}."
            )
    return notes
