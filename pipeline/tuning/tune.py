"""A whole search: check every trial, run them over Ray, report."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.cluster.session import ray_session
from pipeline.comparison.compare import run_placement
from pipeline.comparison.inputs import RunInputs
from pipeline.comparison.runs import RunSpec
from pipeline.config import ConfigError, Experiment
from pipeline.config.load import with_absolute_paths
from pipeline.config.locations import is_uri
from pipeline.console import RunConsole
from pipeline.data.fitting import fit_transforms
from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.slices import SliceColumn, fit_slices
from pipeline.data.sources.dataset import open_dataset
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.selection import selection_metric
from pipeline.registry.tracking import Tracker
from pipeline.run import check_columns
from pipeline.training.plan_checks import check_plan
from pipeline.tuning.halving import Halving
from pipeline.tuning.records import TrialStore
from pipeline.tuning.report import SearchReport, write_report
from pipeline.tuning.search import Search
from pipeline.tuning.space import Trial, plan_trials
from pipeline.tuning.trial_slot import TrialSlot


class TuningError(RuntimeError):
    """No trial could be finished; the message says why."""


def tune(
    experiment: Experiment, output: Path | None, command: str, console: RunConsole
) -> SearchReport:
    """Searches ``tune.parameters`` and reports to disk, MLflow and console.

    Trials that are done are kept in the output folder; a second call runs only what is missing.
    Nothing is registered, and no trial sees the test split.

    Args:
        experiment: with a section ``tune``.
        output: folder of records and ``best.yaml``; None = under storage.path.
        command: how to search again.
        console: told how it goes.

    Raises:
        ConfigError, DatasetError: the experiment, the dataset or any one trial cannot be used;
            nothing has run then.
        TrackingError: MLflow does not answer; finished trials are kept.
    """
    experiment = with_absolute_paths(experiment)
    if is_uri(experiment.storage.path):
        raise ConfigError(
            "storage.path: a search keeps its trials in a local folder that all nodes share; set "
            "it to one"
        )
    plan_trials(experiment, "")  # what is wrong with the settings is said before data is touched
    dataset = open_dataset(experiment, console.note)
    manifest = dataset.manifest
    trials = plan_trials(experiment, manifest.digest)
    transforms = _fit(trials, manifest, dataset.folder)
    first = trials[0].experiment
    metric = selection_metric(
        first.train.early_stopping.metric, first.tasks, first.evaluation.group_by is not None
    )
    evaluation = experiment.evaluation
    slices = fit_slices(evaluation.slices, evaluation.slice_limit, dataset.folder)
    output = (output or Path(experiment.storage.path) / "tune" / experiment.name).resolve()
    store = TrialStore(output / "trials")
    config = experiment.tune
    done = store.find(trials, config.early_stopping)
    if done:
        console.note(f"{len(done)} of {len(trials)} trials are done already")
    console.note("starting Ray ..." if experiment.ray.address is None else "joining Ray ...")
    with ray_session(experiment):
        side_by_side = min(len(trials), config.parallel or len(trials))
        placement, count = run_placement(experiment, side_by_side)
        for trial in trials:
            check_plan(trial.experiment, transforms[_features(trial)], placement.device)
        console.note(
            f"{len(trials)} trials · {count} at a time, {placement.workers} worker(s) each on "
            f"{placement.device}, {placement.threads} thread(s) each · {output}"
        )
        work_folder = output / "work"
        with Tracker.start(_tracked(experiment), manifest, f"{experiment.name} search") as tracker:
            slots = [TrialSlot(placement) for _ in range(count)]
            search = Search(
                store,
                metric,
                None
                if config.early_stopping is None
                else Halving(config.early_stopping, metric.higher_is_better),
                work_folder,
                _inputs(work_folder / "common", transforms, manifest, slices),
                lambda trial: _open_run(trial, tracker, manifest, experiment),
                slots,
                console,
            )
            outcome = search.run(trials, done)
            for slot in slots:
                slot.close()
            report = SearchReport(
                experiment, manifest, metric, trials, outcome, output, tracker.run_id, command
            )
            write_report(report, tracker, console)
            if report.best is None:
                tracker.finish("FAILED")
    if tracker.undelivered is not None:
        console.note(tracker.undelivered)
    console.note(f"open the MLflow page: {tracker.page}")
    return report


def raise_failed(report: SearchReport) -> None:
    """Raises TuningError if no trial was finished."""
    if report.best is None:
        lines = [f"  trial {n}: {why.splitlines()[0]}" for n, why in report.outcome.failed.items()]
        raise TuningError(
            "every trial failed; the same command tries them again:\n" + "\n".join(lines)
        )


def _features(trial: Trial) -> str:
    return trial.experiment.features.model_dump_json()


def _fit(
    trials: Sequence[Trial], manifest: Manifest, dataset: str | Path
) -> dict[str, FeatureTransforms]:
    """Transforms by the features of the trials; every trial is held against the dataset."""
    found: dict[str, FeatureTransforms] = {}
    for trial in trials:
        try:
            check_columns(trial.experiment, manifest)
            if _features(trial) not in found:
                found[_features(trial)] = fit_transforms(trial.experiment.features, dataset)
        except (ConfigError, DatasetError) as error:
            error.add_note(f"tune.parameters, {trial.title}: {trial.values}")
            raise
    return found


def _inputs(
    folder: Path,
    transforms: dict[str, FeatureTransforms],
    manifest: Manifest,
    slices: Sequence[SliceColumn],
) -> Callable[[Path, RunSpec], None]:
    """What fills the folder of a run; the test split is left out, so that no trial can see it."""
    splits = {name: shards for name, shards in manifest.splits.items() if name != "test"}
    seen = dataclasses.replace(manifest, splits=splits)
    inputs = {
        features: RunInputs(folder / f"features-{number}", fitted, seen, slices)
        for number, (features, fitted) in enumerate(transforms.items())
    }
    return lambda run_folder, spec: inputs[spec.experiment.features.model_dump_json()].link(
        run_folder, spec
    )


def _open_run(trial: Trial, search: Tracker, manifest: Manifest, experiment: Experiment) -> Tracker:
    """The MLflow run of a trial, a child of the search's."""
    tags = {"mlflow.parentRunId": search.run_id, "tune.trial": str(trial.number)}
    tags |= {f"tune.{key}": str(value)[:500] for key, value in trial.values.items()}
    tracked = _tracked(trial.experiment, tags)
    return Tracker.start(tracked, manifest, f"{experiment.name} trial {trial.number}")


def _tracked(experiment: Experiment, tags: dict[str, str] | None = None) -> Experiment:
    """The experiment as MLflow should file it: a search is no training run."""
    mlflow = experiment.mlflow
    name = f"{mlflow.experiment or experiment.name}-tune"
    update = {"experiment": name, "tags": mlflow.tags | (tags or {})}
    return experiment.model_copy(update={"mlflow": mlflow.model_copy(update=update)})
