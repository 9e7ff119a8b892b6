"""One pass over the rows: both versions' metrics, intervals of their differences, slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.backtest.judging import Judge, frequent_values, group_numbers
from pipeline.backtest.raw_rows import RawRows
from pipeline.backtest.skipped_rows import SkippedRows
from pipeline.backtest.versions import LoadedVersion
from pipeline.config import Experiment
from pipeline.data.manifest import DatasetError
from pipeline.data.slices import SliceColumn
from pipeline.promotion.bootstrap import bootstrap
from pipeline.promotion.intervals import DrawnResults
from pipeline.promotion.latency import single_row_latency
from pipeline.promotion.outcome import Comparison, VersionFacts
from pipeline.promotion.sample import ComparedRows

_LATENCY_ROWS = 500


@dataclass(frozen=True)
class NamedVersion:
    """A loaded version and what the registry calls it."""

    name: str
    version: str
    loaded: LoadedVersion


def compare(
    experiment: Experiment,
    candidate: NamedVersion,
    champion: NamedVersion | None,
    rows: RawRows,
) -> Comparison:
    """Judges both versions on the same rows.

    Args:
        experiment: with sections ``promotion`` and ``evaluation``.
        candidate, champion: loaded versions; labels are as the candidate defines them.
        rows: what they are judged on.

    Raises:
        DatasetError: the rows cannot be used, or there are none.
        VersionError: the versions cannot be compared.
    """
    settings, evaluation = experiment.promotion, experiment.evaluation
    named = [candidate] if champion is None else [candidate, champion]
    versions = [version.loaded for version in named]
    slices = frequent_values(rows, evaluation.slices, evaluation.slice_limit)
    unit = settings.resample_by
    keys = list(dict.fromkeys([*evaluation.slices, *([] if unit is None else [unit])]))
    skipped = SkippedRows(rows.name, rows.faults)
    judge = Judge(versions, skipped, settings.split == "train", keys, slices)
    unit_column = None if unit is None else keys.index(unit)
    sample = ComparedRows(judge, settings.bootstrap_rows, unit_column, len(slices))
    first = _score_all(judge, sample, rows, keys, slices)
    metrics = judge.compute()
    sample.finish()
    drawn = DrawnResults(judge, sample, metrics, slices, settings.min_slice_positives)
    units, count = sample.units()
    replicates = bootstrap(drawn.populations, units, settings.replicates, settings.seed)
    latencies = single_row_latency(versions, first, settings.latency_calls)
    facts = [
        VersionFacts(version.name, version.version, version.loaded.bytes, latency)
        for version, latency in zip(named, latencies, strict=True)
    ]
    lacking = [] if champion is None else champion.loaded.scorer.task_names
    return Comparison(
        candidate=facts[0],
        champion=facts[1] if champion is not None else None,
        data=rows.description,
        rows=judge.rows,
        bootstrap=_bootstrap_text(experiment, sample, count),
        tasks=drawn.task_results(replicates),
        slices=drawn.slice_results(replicates),
        missing_tasks=tuple(n for n in lacking if candidate.loaded.task(n) is None),
        losses=tuple(skipped.losses),
        remarks=(*skipped.remarks(), *judge.remarks),
    )


def _score_all(
    judge: Judge,
    sample: ComparedRows,
    rows: RawRows,
    keys: Sequence[str],
    slices: Sequence[SliceColumn],
) -> pa.Table:
    """Passes all rows through the judge; returns the first ones as they are, for timing."""
    first: list[pa.RecordBatch] = []
    for batch in rows.batches(judge.columns, skipped=judge.skipped):
        judged = judge.add(batch)
        if not judged.batch.rows.num_rows:
            continue
        if not first:
            first.append(judged.batch.rows.slice(0, _LATENCY_ROWS))
        groups = [group_numbers(s, judged.keys_BK[:, keys.index(s.name)]) for s in slices]
        sample.add(judged, groups)
    if not first:
        raise DatasetError(f"{rows.description}: holds no rows to compare versions on")
    return pa.Table.from_batches(first)


def _bootstrap_text(experiment: Experiment, sample: ComparedRows, units: int) -> str:
    settings = experiment.promotion
    unit = "rows" if settings.resample_by is None else f"values of {settings.resample_by}"
    text = (
        f"95 % intervals from {settings.replicates:,} paired Poisson bootstrap replicates "
        f"(percentiles, seed {settings.seed}) of {units:,} {unit}"
    )
    if sample.share < 1:
        text += (
            f", a seeded sample of 1/{round(1 / sample.share):,} of them; intervals are those of "
            "the sample, wider than of all rows"
        )
    return text + "."
