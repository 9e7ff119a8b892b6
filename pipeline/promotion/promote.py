"""A promotion, start to end: find → load → compare → judge → keep the evidence → move."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from pipeline.backtest.raw_rows import open_rows
from pipeline.backtest.versions import load_version
from pipeline.config import Experiment
from pipeline.config.load import ConfigError, with_absolute_paths
from pipeline.config.locations import mask
from pipeline.console import RunConsole
from pipeline.promotion.aliases import PromotionError, aliased, find_version, promote, roll_back
from pipeline.promotion.compare import NamedVersion, compare
from pipeline.promotion.evidence import (
    JUDGED_TEXT,
    evidence_page,
    evidence_tags,
    evidence_tree,
    task_table,
    verdict_table,
    version_table,
)
from pipeline.promotion.outcome import Comparison
from pipeline.promotion.rules import Verdict, failures, judge_rules
from pipeline.registry.names import registered_name
from pipeline.registry.uris import check_reachable, mlflow_client, mlflow_errors, tracking_uri

_FOLDER = "promotion"


class RejectedError(PromotionError):
    """A candidate failed rules; nothing was moved."""


@dataclass(frozen=True)
class Judgement:
    """A candidate compared and judged.

    Attributes:
        model: registered model.
        comparison: the figures.
        verdicts: one per rule and subject.
        evidence: where they are kept: a folder among the run's artifacts; None after a dry run.
    """

    model: str
    comparison: Comparison
    verdicts: list[Verdict]
    evidence: str | None

    @property
    def passed(self) -> bool:
        return not failures(self.verdicts)

    def summary(self) -> dict[str, Any]:
        """As plain JSON (``--summary``)."""
        tree = {"model": self.model, "evidence": self.evidence}
        return tree | evidence_tree(self.comparison, self.verdicts)


def judge_version(
    experiment: Experiment,
    wanted: str,
    console: RunConsole,
    model: str | None = None,
    dry_run: bool = False,
) -> Judgement:
    """Compares a version with the champion and keeps the evidence with it.

    Args:
        experiment: says which MLflow, which rows, which rules.
        wanted: number or alias of the candidate.
        console: hears what is done.
        model: registered model; None = the experiment's.
        dry_run: write nothing.

    Raises:
        ConfigError, DatasetError, TrackingError, VersionError, PromotionError: it cannot be judged.
    """
    experiment = with_absolute_paths(experiment)
    settings, name = experiment.promotion, model or registered_name(experiment)
    with _registry(experiment, f"find versions of {name!r}") as client:
        candidate = find_version(client, name, wanted)
        champion = aliased(client, name, settings.champion)
    if champion is not None and champion.version == candidate.version:
        raise PromotionError(f"{name}: version {champion.version} is @{settings.champion} already")
    rows = open_rows(experiment, settings, "promotion")
    against = "no champion" if champion is None else f"version {champion.version}"
    console.note(f"{name}: version {candidate.version} against {against}, on {rows.description}")
    with tempfile.TemporaryDirectory(prefix="ple-promotion-") as folder:
        loaded = [
            _load(experiment, name, version, Path(folder) / str(number))
            for number, version in enumerate([candidate, champion])
            if version is not None
        ]
        _check_task_rules(experiment, loaded[0])
        comparison = compare(experiment, loaded[0], loaded[1] if champion else None, rows)
    verdicts = judge_rules(comparison, settings)
    evidence = None if dry_run else _keep(experiment, candidate, comparison, verdicts)
    _show(console, comparison, verdicts, settings.judged_on)
    return Judgement(name, comparison, verdicts, evidence)


def move_champion(
    experiment: Experiment, judgement: Judgement, take_over: str | None = None
) -> None:
    """Moves the alias to a version that passed.

    Raises:
        RejectedError: it did not pass.
        LockError, PromotionError: somebody else was faster.
        TrackingError: the registry refused.
    """
    comparison = judgement.comparison
    failed = failures(judgement.verdicts)
    if failed:
        lines = [
            f"  {v.rule}, {v.subject}: {v.found}, asked for {v.limit}; {v.advice}" for v in failed
        ]
        raise RejectedError(
            f"{comparison.candidate.uri} fails {len(failed)} of {len(judgement.verdicts)} rules, "
            "nothing was moved:\n" + "\n".join(lines)
        )
    champion = comparison.champion
    action = f"move @{experiment.promotion.champion} of {judgement.model!r}"
    with _registry(experiment, action) as client:
        promote(
            client,
            judgement.model,
            comparison.candidate.version,
            None if champion is None else champion.version,
            experiment.promotion,
            evidence_tags(comparison, judgement.verdicts, judgement.evidence or ""),
            take_over,
        )


def withdraw_champion(
    experiment: Experiment, model: str | None = None, take_over: str | None = None
) -> tuple[str, str, str]:
    """Rolls back: (model, version that is champion now, version that was).

    Raises:
        LockError, PromotionError: there is nothing to go back to, or somebody else is moving it.
        TrackingError: the registry refused.
    """
    name = model or registered_name(experiment)
    with _registry(experiment, f"roll back {name!r}") as client:
        return (name, *roll_back(client, name, experiment.promotion, take_over))


@contextlib.contextmanager
def _registry(experiment: Experiment, action: str) -> Iterator[MlflowClient]:
    uri = tracking_uri(experiment)
    check_reachable(uri)
    with mlflow_errors(uri, action):
        yield mlflow_client(uri)


def _load(experiment: Experiment, name: str, version: ModelVersion, folder: Path) -> NamedVersion:
    number = str(version.version)
    loaded = load_version(tracking_uri(experiment), f"models:/{name}/{number}", folder)
    return NamedVersion(name, number, loaded)


def _check_task_rules(experiment: Experiment, candidate: NamedVersion) -> None:
    known = candidate.loaded.scorer.task_names
    for name in experiment.promotion.tasks:
        if name not in known:
            raise ConfigError(
                f"promotion.tasks.{name}: {candidate.loaded.uri} has no such task (it has "
                f"{', '.join(known)}); correct the name"
            )


def _keep(
    experiment: Experiment, version: ModelVersion, comparison: Comparison, verdicts: list[Verdict]
) -> str:
    """Writes page and JSON to the version's run and tags to the version; returns their folder."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    folder = f"{_FOLDER}/{version.name}-{version.version}-{stamp}"
    rules = experiment.promotion.model_dump(mode="json")
    text = mask(yaml.safe_dump({"promotion": rules}, sort_keys=False, width=100))
    page = evidence_page(comparison, verdicts, experiment.promotion.judged_on, text)
    with _registry(experiment, f"keep the evidence for {comparison.candidate.uri}") as client:
        if version.run_id:
            tree = evidence_tree(comparison, verdicts) | {"settings": rules}
            client.log_dict(version.run_id, tree, f"{folder}/evidence.json")
            client.log_text(version.run_id, page.html(), f"{folder}/evidence.html")
        for key, value in evidence_tags(comparison, verdicts, folder).items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
    return folder


def _show(
    console: RunConsole, comparison: Comparison, verdicts: list[Verdict], judged_on: str
) -> None:
    for line in comparison.remarks:
        console.note(line)
    console.table(f"tasks, {comparison.rows:,} rows", *task_table(comparison))
    console.table("versions", *version_table(comparison))
    console.note(f"{comparison.bootstrap} {JUDGED_TEXT[judged_on]}")
    console.table("rules", *verdict_table(verdicts))
