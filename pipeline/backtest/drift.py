"""How far features of today are from those of training: the population stability index.

PSI = Σ_k (a_k − e_k)·ln(a_k / e_k) over bins k with share e_k of the training rows and a_k of the
rows judged (the symmetric Kullback-Leibler divergence of both; Siddiqi, Credit Risk Scorecards,
2006, where 0.1 and 0.25 are the usual thresholds). Shares below FLOOR count as FLOOR, so that a
bin empty on one side adds much and not infinitely much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.backtest.raw_rows import RawBatch
from pipeline.config.backtest import BacktestConfig
from pipeline.data.manifest import DatasetError
from pipeline.registry.reference import MISSING, FeatureReference, Reference

FLOOR = 1e-4
STABLE, WATCH, ACT = "stable", "watch", "act"


@dataclass(frozen=True)
class FeatureDrift:
    """One feature on one day.

    Attributes:
        name: raw column.
        psi: against training.
        verdict: ``stable``, ``watch`` or ``act``.
        moved: the bin that adds most to it, with its shares: ``(missing): 2.0 % -> 31.0 %``.
        missing: share of rows (of items of lists) without a value; of training.
    """

    name: str
    psi: float
    verdict: str
    moved: str
    missing: float
    missing_in_training: float


class DriftCounter:
    """Counts the rows of a day by the bins of a reference."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.reset()

    @property
    def columns(self) -> list[str]:
        return [feature.name for feature in self.reference.features]

    def reset(self) -> None:
        self._counts = [np.zeros(len(f.counts), np.int64) for f in self.reference.features]

    def add(self, batch: RawBatch) -> None:
        """Takes a batch that has the columns. Raises DatasetError for values of another kind."""
        for feature, counts in zip(self.reference.features, self._counts, strict=True):
            try:
                counts += feature.count(batch.rows.column(feature.name))
            except pa.ArrowException as error:
                raise DatasetError(
                    f"{batch.place}: column {feature.name!r} has values of another kind than in "
                    f"training ({error}); write it with the type it had"
                ) from error

    def drift(self, settings: BacktestConfig) -> list[FeatureDrift]:
        """Every feature, the one that moved most first."""
        found = [
            _of_feature(feature, counts, settings)
            for feature, counts in zip(self.reference.features, self._counts, strict=True)
            if counts.sum() and sum(feature.counts)
        ]
        return sorted(found, key=lambda drift: -drift.psi)


def psi(expected: Sequence[int] | np.ndarray, actual: Sequence[int] | np.ndarray) -> float:
    """Population stability index of two sets of counts over the same bins."""
    return float(_terms(expected, actual).sum())


def verdict_of(value: float, settings: BacktestConfig) -> str:
    """The index in a word."""
    if value >= settings.act_psi:
        return ACT
    return WATCH if value >= settings.watch_psi else STABLE


def _terms(expected: Sequence[int] | np.ndarray, actual: Sequence[int] | np.ndarray) -> np.ndarray:
    e, a = (np.maximum(_shares(counts), FLOOR) for counts in (expected, actual))
    terms: np.ndarray = (a - e) * np.log(a / e)
    return terms


def _shares(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    values = np.asarray(counts, np.float64)
    shares: np.ndarray = values / values.sum()
    return shares


def _of_feature(
    feature: FeatureReference, counts: np.ndarray, settings: BacktestConfig
) -> FeatureDrift:
    terms = _terms(feature.counts, counts)
    before, now = _shares(feature.counts), _shares(counts)
    largest, value = int(terms.argmax()), float(terms.sum())
    assert feature.bins[-1] == MISSING
    return FeatureDrift(
        name=feature.name,
        psi=value,
        verdict=verdict_of(value, settings),
        moved=f"{feature.bins[largest]}: {before[largest]:.1%} -> {now[largest]:.1%}",
        missing=float(now[-1]),
        missing_in_training=float(before[-1]),
    )
