"""A whole comparison: plan the kinds, run them over Ray, judge, report."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from pipeline.cluster.session import Placement, ray_session, resolve_placement
from pipeline.comparison.budget import Budget, KindPlan, plan_kinds
from pipeline.comparison.comparison import Comparison, scored_line
from pipeline.comparison.inputs import RunInputs
from pipeline.comparison.layouts import SINGLE_TASK
from pipeline.comparison.report import track_report, write_report
from pipeline.comparison.runner import FailedRun, Runner, slot_count
from pipeline.comparison.runs import RecordStore, RunSpec, run_spec
from pipeline.comparison.search import (
    SEARCH_SEED_OFFSET,
    RateChoice,
    RatePoint,
    choose_rates,
    rate_grid,
    with_rates,
)
from pipeline.comparison.slots import Slot
from pipeline.comparison.tables import kind_table
from pipeline.config import ConfigError, Experiment
from pipeline.config.load import with_absolute_paths
from pipeline.config.locations import is_uri
from pipeline.console import RunConsole
from pipeline.data.fitting import fit_transforms
from pipeline.data.slices import fit_slices
from pipeline.data.sources.dataset import open_dataset
from pipeline.registry.provenance import git_tags
from pipeline.registry.tracking import Tracker
from pipeline.run import check_columns


class ComparisonError(RuntimeError):
    """Some runs failed; the message names them."""


@dataclass(frozen=True)
class Request:
    """What is asked for on the command line.

    Attributes:
        kinds: kinds of model; single_task is added where it is missing.
        seeds: runs of each kind, with the seeds train.seed, train.seed + 1, …
        budget: what every kind is made to cost as much of as the config's model.
        search_points: points of the search of learning rates; 0 = no search.
        output: folder of records and page; None = under storage.path.
        command: how to make the page again.
    """

    kinds: tuple[str, ...]
    seeds: int
    budget: Budget
    search_points: int
    output: Path | None
    command: str


def compare(experiment: Experiment, request: Request, console: RunConsole) -> Comparison:
    """Runs the comparison and reports it to disk, MLflow and console.

    Finished runs are kept in the output folder; a second call does only what is missing.

    Raises:
        ConfigError, DatasetError: the experiment, the dataset or a kind cannot be used.
        TrackingError: MLflow does not answer.
    """
    experiment = with_absolute_paths(experiment)
    dataset = open_dataset(experiment, console.note)
    manifest = dataset.manifest
    transforms = fit_transforms(experiment.features, dataset.folder)
    check_columns(experiment, manifest)
    evaluation = experiment.evaluation
    slices = fit_slices(evaluation.slices, evaluation.slice_limit, dataset.folder)
    kinds = list(request.kinds)
    if SINGLE_TASK not in kinds:
        console.note("single_task is added: without it no gain can be told")
        kinds.insert(0, SINGLE_TASK)
    grid = rate_grid(request.search_points) if request.search_points else []
    plans = plan_kinds(experiment, kinds, request.budget, transforms)
    console.table("kinds", *kind_table(plans, {}, {}))
    if is_uri(experiment.storage.path):
        raise ConfigError(
            "storage.path: a comparison keeps its runs in a local folder that all nodes share; set "
            "it to one"
        )
    output = request.output or Path(experiment.storage.path) / "compare" / experiment.name
    store = RecordStore(output.resolve() / "runs")
    revision = git_tags(Path(__file__).parent).get("mlflow.source.git.commit", "")
    console.note("starting Ray ..." if experiment.ray.address is None else "joining Ray ...")
    with ray_session(experiment), Tracker.start(_tracked(experiment), manifest) as tracker:
        models = sum(len(plan.experiments) for plan in plans)
        placement, count = run_placement(experiment, max(request.seeds, len(grid)) * models)
        console.note(
            f"{models} models x {request.seeds} seeds"
            + (f" after {len(grid)} learning rates each" if grid else "")
            + f" · {count} at a time, {placement.workers} worker(s) each on {placement.device},"
            f" {placement.threads} thread(s) each · {output}"
        )
        slots = [Slot(placement) for _ in range(count)]
        work_folder = output.resolve() / "work"

        inputs = RunInputs(work_folder / "common", transforms, manifest, slices)
        runner = Runner(store, work_folder, inputs.link, slots, console, revision, scored_line)
        choices, failed = _search(runner, plans, grid, manifest.digest, experiment, request.seeds)
        specs = _specs(plans, choices, grid, manifest.digest, experiment, request.seeds)
        records, failed_scoring = runner.run(specs)
        runner.clean()
        for slot in slots:
            slot.close()
        failed += failed_scoring
        comparison = Comparison(
            experiment=experiment,
            manifest=manifest,
            plans=plans,
            records=[records[spec.key] for spec in specs if spec.key in records],
            choices=choices,
            failed=failed,
            seeds=request.seeds,
            budget=request.budget,
            command=request.command,
        )
        write_report(comparison, output, console)
        track_report(comparison, tracker, output)
    if tracker.undelivered is not None:
        console.note(tracker.undelivered)
    return comparison


def _search(
    runner: Runner,
    plans: Sequence[KindPlan],
    grid: Sequence[RatePoint],
    digest: str,
    experiment: Experiment,
    seeds: int,
) -> tuple[list[RateChoice], list[FailedRun]]:
    """Tries every point of the grid for every model, with one seed; the best on validation."""
    seed = experiment.train.seed + SEARCH_SEED_OFFSET
    by_model: dict[tuple[str, str | None], list[RunSpec]] = {
        (plan.kind, task): [
            run_spec(with_rates(model, point), digest, plan.kind, task, seed, number)
            for number, point in enumerate(grid)
        ]
        for plan in plans
        for task, model in plan.experiments.items()
    }
    specs = [spec for model_specs in by_model.values() for spec in model_specs]
    if not specs:
        return [], []
    records, failed = runner.run(specs, later=seeds * len(by_model))
    choices = []
    for (kind, task), model_specs in by_model.items():
        done = {n: records[s.key] for n, s in enumerate(model_specs) if s.key in records}
        choice = choose_rates(model_specs[0].experiment, kind, task, grid, done)
        if choice is not None:
            choices.append(choice)
    return choices, failed


def _specs(
    plans: Sequence[KindPlan],
    choices: Sequence[RateChoice],
    grid: Sequence[RatePoint],
    digest: str,
    experiment: Experiment,
    seeds: int,
) -> list[RunSpec]:
    """All scored runs, seed by seed, so that whatever is done can be paired."""
    points = {(choice.kind, choice.task): grid[choice.point] for choice in choices}
    specs = []
    for seed in range(experiment.train.seed, experiment.train.seed + seeds):
        for plan in plans:
            for task, model in plan.experiments.items():
                point = points.get((plan.kind, task))
                if point is not None:
                    model = with_rates(model, point)
                specs.append(run_spec(model, digest, plan.kind, task, seed))
    return specs


def run_placement(experiment: Experiment, runs: int) -> tuple[Placement, int]:
    """What a run gets, and how many go side by side. train.workers: auto means one each here."""
    train = experiment.train
    if train.workers == "auto":
        train = train.model_copy(update={"workers": 1})
    placement = resolve_placement(experiment.model_copy(update={"train": train}))
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    count = slot_count(placement, cpus, gpus, runs)
    threads = placement.threads
    if train.threads == "auto" and experiment.ray.address is None:
        cores = len(os.sched_getaffinity(0))
        threads = max(placement.cpus_per_worker, cores // (count * placement.workers))
    return (
        Placement(placement.workers, placement.device, placement.cpus_per_worker, threads),
        count,
    )


def _tracked(experiment: Experiment) -> Experiment:
    """The experiment as MLflow should file it: a comparison is no training run."""
    name = f"{experiment.mlflow.experiment or experiment.name}-compare"
    mlflow = experiment.mlflow.model_copy(update={"experiment": name})
    return experiment.model_copy(update={"mlflow": mlflow})


def raise_failed(comparison: Comparison) -> None:
    """Raises ComparisonError, naming every run that is missing.

    Learning rates of the search with which training fails are no loss: they are not chosen.
    """
    failed = [run for run in comparison.failed if run.matters]
    if failed:
        lines = [f"  {run.spec.title}: {run.reason.splitlines()[0]}" for run in failed]
        raise ComparisonError(
            f"{len(failed)} runs failed, the rest is reported; the same command tries them "
            "again:\n" + "\n".join(lines)
        )


def check_request(request: Request, known: Sequence[str]) -> None:
    """Raises ConfigError for a request that cannot be meant."""
    for kind in request.kinds:
        if kind not in known:
            raise ConfigError(f"--kinds: {kind!r} is none of {', '.join(known)}")
    repeated = sorted({k for k in request.kinds if request.kinds.count(k) > 1})
    if repeated:
        raise ConfigError(f"--kinds: {', '.join(repeated)} given twice")
    if request.seeds < 1:
        raise ConfigError(f"--seeds: {request.seeds}; give at least 1, better 5")
    if len({*request.kinds, SINGLE_TASK}) < 2:
        raise ConfigError("--kinds: name at least one kind besides single_task")
