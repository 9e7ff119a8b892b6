"""One training run, start to end: check → track → launch → export → register → summarise."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from pipeline.checkpoint.marker import normalised
from pipeline.cluster.launch import Listener, launch_training
from pipeline.cluster.run_file import RunFile, remove_run_folder, run_to_resume
from pipeline.cluster.session import Placement, ray_session, resolve_placement, waiting_for
from pipeline.config import Experiment
from pipeline.config.load import with_absolute_paths
from pipeline.config.locations import inside, mask
from pipeline.console import RunConsole
from pipeline.data.collisions import HashedFeature, hashed_features
from pipeline.data.fitting import fit_transforms, load_statistics
from pipeline.data.keys import KeyEncoder
from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.preparing.sampling import check_sampling
from pipeline.data.slices import fit_slices, save_slices
from pipeline.data.sources.dataset import open_dataset
from pipeline.data.storage import open_store
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.selection import selection_metric
from pipeline.registry.artifact import RegisteredVersion, register_model
from pipeline.registry.init_source import Beginning
from pipeline.registry.result_log import log_profile, log_result
from pipeline.registry.run_life import RunLife
from pipeline.registry.tracking import Tracker
from pipeline.registry.uris import TrackingError
from pipeline.training.identity import run_identity
from pipeline.training.plan_checks import check_plan
from pipeline.training.pooling import pooling_factors, save_pooling_factors
from pipeline.training.report import TrainingResult

EXAMPLE_ROWS = 3
SHOWN_FLAGS = 6


@dataclass(frozen=True)
class RunOutcome:
    """A finished run: what was trained, where it is tracked, what was registered."""

    run_id: str
    page: str
    placement: Placement
    manifest: Manifest
    result: TrainingResult
    version: RegisteredVersion
    examples: pd.DataFrame
    seconds: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """The run as plain JSON (``--summary``)."""
        result = self.result
        return {
            "run_id": self.run_id,
            "model_uri": self.version.uri,
            "model_version": self.version.version,
            "model_alias": self.version.alias,
            "dataset_digest": self.manifest.digest,
            "workers": self.placement.workers,
            "device": self.placement.device,
            "splits": result.splits,
            "ceilings": self.manifest.ceilings,
            "best_step": result.best_step,
            "steps": result.steps,
            "rows_trained": result.rows_trained,
            "examples_per_second": result.examples_per_second,
            "data_wait_fraction": result.data_wait_fraction,
            "seconds": self.seconds,
            "time_shares": result.time_shares,
            "counters": result.counters,
            "lost_rows": result.lost_rows,
            "flags": result.diagnostics["flags"],
        }


def train_and_register(
    experiment: Experiment,
    console: RunConsole,
    resume: str | None = None,
    init_from: str | None = None,
) -> RunOutcome:
    """Runs the experiment and registers its best weights as a model version.

    What can be told from the experiment, the manifest, Ray and MLflow is refused before the first
    worker starts.

    Args:
        experiment: the run.
        console: told how it goes.
        resume: the run to go on with; "" = the newest unfinished one of this name, or a new one;
            None = a new one.
        init_from: what a new run takes its first weights from (``registry.init_source``).

    Raises:
        ConfigError, DatasetError: the experiment or the dataset cannot be used.
        ResumeError: there is no such run to resume, or it was another experiment.
        TrackingError: MLflow does not answer.
        WarmStartError: there is no such source, or nothing in it fits this model.
        WorkersFailedError: training failed; the message is the worker's own.
        RunStopped: SIGTERM or Ctrl-C; a checkpoint stands, if training had begun.
    """
    began = time.perf_counter()
    experiment = with_absolute_paths(experiment)
    storage = experiment.storage.path
    earlier = None
    if resume is not None:
        earlier = run_to_resume(storage, experiment.name, resume or None)
        if earlier is None:
            console.note(
                f"no unfinished run of {experiment.name!r} under {mask(storage)}: a new one"
            )
    dataset = open_dataset(experiment, console.note)
    manifest = dataset.manifest
    identity = normalised(run_identity(experiment, manifest.digest))
    if earlier is not None:
        earlier.check_same(identity)
    transforms = fit_transforms(experiment.features, dataset.folder)
    check_columns(experiment, manifest)
    evaluation = experiment.evaluation
    slices = fit_slices(evaluation.slices, evaluation.slice_limit, dataset.folder)
    statistics = load_statistics(open_store(dataset.folder), manifest)
    hashed = _hashed(experiment, manifest, statistics, console)
    pooling = pooling_factors(transforms, statistics, manifest.rows("train"))
    resumed = None if earlier is None else inside(storage, earlier.run_id)
    beginning = Beginning(experiment, init_from, transforms, resumed, console.note)
    console.note("starting Ray ..." if experiment.ray.address is None else "joining Ray ...")
    with ray_session(experiment), RunLife(experiment) as life:
        placement = resolve_placement(experiment)
        check_plan(experiment, transforms, placement.device)
        with Tracker.start(
            experiment, manifest, resume_run_id=None if earlier is None else earlier.run_id
        ) as tracker:
            console.note(f"MLflow run {tracker.run_id}" + (", resumed" if earlier else ""))
            run_folder = inside(storage, tracker.run_id)
            run = earlier or RunFile.new(tracker.run_id, experiment.name, identity)
            beginning.begin(tracker, run_folder)  # a run that can be resumed has its source
            life.begin(tracker, run, run_folder)
            transforms.save(inside(run_folder, "transforms"))
            manifest.save(inside(run_folder, "dataset"))
            save_slices(slices, inside(run_folder, "dataset"))
            save_pooling_factors(pooling, inside(run_folder, "dataset"))
            tracker.log_dict({"features": [asdict(f) for f in hashed]}, "hash_collisions.json")
            tracker.set_tags({f"placement.{k}": str(v) for k, v in asdict(placement).items()})
            launched = time.perf_counter()
            result = _train(experiment, placement, manifest, tracker, run_folder, console, life)
            trained = time.perf_counter()
            for line in _warnings(result):
                console.note(line)
            try:
                tracker.await_server()
                version, examples = _register(tracker, experiment, transforms, manifest, result)
                log_result(tracker, experiment, result)
                log_profile(tracker, run_folder)
            except TrackingError as error:
                raise TrackingError(
                    f"{error}; the trained weights are kept in {mask(result.checkpoint)}, go on "
                    f"with --resume {tracker.run_id}"
                ) from error
        # MLflow has it all, or its record does: what is killed before this line can be resumed.
        life.end("finished")
    if tracker.undelivered is not None:
        console.note(tracker.undelivered)
    elif not experiment.storage.keep_checkpoint:
        remove_run_folder(run_folder)
    done = time.perf_counter()
    seconds = dict(result.seconds) | {
        "start": launched - began,
        "workers": trained - launched,
        "registration": done - trained,
        "total": done - began,
    }
    return RunOutcome(
        tracker.run_id, tracker.page, placement, manifest, result, version, examples, seconds
    )


def _hashed(
    experiment: Experiment, manifest: Manifest, statistics: dict[str, Any], console: RunConsole
) -> list[HashedFeature]:
    """What is expected of the hashed features; the console hears of tables that are too small."""
    hashed = hashed_features(experiment.features, statistics, manifest.rows("train"))
    for feature in hashed:
        note = feature.note()
        if note is not None:
            console.note(note)
    return hashed


def _train(
    experiment: Experiment,
    placement: Placement,
    manifest: Manifest,
    tracker: Tracker,
    run_folder: str,
    console: RunConsole,
    life: RunLife,
) -> TrainingResult:
    """Launches the workers, passing their progress to the console and their metrics to MLflow."""
    count = f"{placement.workers}"
    if placement.fewest < placement.workers:
        count = f"{placement.fewest} to {count}"
    console.note(
        f"{count} worker(s) on {placement.device}, {placement.threads} thread(s) each"
        f" · {manifest.rows('train'):,} training rows"
    )
    short = waiting_for(placement)
    if short is not None:
        console.note(short)
    listener = Listener(
        on_progress=console.progress,
        on_metrics=lambda posting: tracker.log_metrics(
            posting.values | {"epoch": float(posting.epoch)}, posting.step
        ),
        on_note=console.note,
    )
    life.check()
    with console:
        outcome = launch_training(
            experiment,
            placement,
            run_name=tracker.run_id,
            run_folder=run_folder,
            listener=listener,
            signals=life.signals,
        )
    if isinstance(outcome, TrainingResult):
        life.check()
        return outcome
    raise life.stopped()


def check_columns(experiment: Experiment, manifest: Manifest) -> None:
    """Refuses an experiment whose splits or task columns the dataset does not have.

    Raises:
        DatasetError, ConfigError: naming the split, the column or the setting.
    """
    for split in ("train", "valid"):
        if not manifest.splits.get(split) or manifest.rows(split) == 0:
            raise DatasetError(
                f"dataset {manifest.name!r} has no rows in its {split} split; training needs train "
                "and valid: prepare it again with both"
            )
    for task in experiment.tasks:
        needed = [("label", column) for column in task.label_columns]
        for key, column in needed + [("space", column) for column in task.space_columns]:
            if column not in {c.name for c in manifest.columns}:
                raise DatasetError(
                    f"tasks.{task.name}.{key}: dataset {manifest.name!r} has no column "
                    f"{column!r}; its label columns are "
                    + ", ".join(c.name for c in manifest.columns if c.role in ("label", "space"))
                )
    check_sampling(experiment, manifest)
    if experiment.data.sample_weight is not None:
        manifest.column(experiment.data.sample_weight)
    grouped = experiment.evaluation.group_by is not None
    KeyEncoder.of(experiment.evaluation.key_columns, manifest)
    selection_metric(experiment.train.early_stopping.metric, experiment.tasks, grouped)


def _warnings(result: TrainingResult) -> list[str]:
    """What the console says of gates and experts that do not do their work."""
    flags: list[str] = result.diagnostics["flags"]
    shown = flags[:SHOWN_FLAGS]
    more = len(flags) - len(shown)
    return shown + ([f"and {more} more remarks on gates and experts in gates.json"] if more else [])


def _register(
    tracker: Tracker,
    experiment: Experiment,
    transforms: FeatureTransforms,
    manifest: Manifest,
    result: TrainingResult,
) -> tuple[RegisteredVersion, pd.DataFrame]:
    # torchrec is slow to import: only now does the driver need the model itself.
    from pipeline.checkpoint.weights import load_unsharded
    from pipeline.model import build_ranker

    ranker = build_ranker(experiment, transforms, device="cpu")
    load_unsharded(ranker, result.checkpoint)
    examples = example_rows(experiment, manifest, transforms)
    version = register_model(
        tracker,
        experiment,
        transforms,
        manifest,
        ranker.state_dict(),
        result.splits,
        examples,
        result.best_step,
        result.diagnostics,
        result.sample,
    )
    return version, examples


def example_rows(
    experiment: Experiment, manifest: Manifest, transforms: FeatureTransforms
) -> pd.DataFrame:
    """The first raw rows of the test split (or of valid), features only."""
    split = "test" if manifest.splits.get("test") else "valid"
    shard = next(shard for shard in manifest.splits[split] if shard.rows)
    store = open_store(manifest.root or experiment.data.path)
    with store.open_input(shard.path) as source, pq.ParquetFile(source) as file:
        batch = next(file.iter_batches(EXAMPLE_ROWS, columns=list(transforms.columns)))
    return batch.to_pandas()
