"""A scoring job, from a model's URI to a complete output."""

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from pipeline.cluster.session import ray_cluster
from pipeline.config.schema import RayConfig
from pipeline.config.scoring import ScoringConfig
from pipeline.console import RunConsole
from pipeline.data.remote import RetryPolicy
from pipeline.registry.client import download_version, resolve_version
from pipeline.registry.scorer import RowScorer
from pipeline.scoring.actors import ItemResult, ModelSource, Runner, score_on_ray
from pipeline.scoring.errors import ScoringError
from pipeline.scoring.inputs import Inputs, Listing, check_inputs, list_files, score_columns
from pipeline.scoring.item import ItemRecord, ScoringTask
from pipeline.scoring.place import FORMAT_VERSION, Mode, OutputPlace
from pipeline.scoring.plan import JobIdentity, WorkItem, plan_items


@dataclass(frozen=True)
class ScoringJob:
    """What is to be scored.

    Attributes:
        tracking_uri: the MLflow whose registry is meant.
        model: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        input: a Parquet file, a folder or a pattern; output: a folder. Local paths or URIs.
        config: columns, files, actors.
        retry: for reads of a remote store.
        mode: new = nothing may be there; resume = goes on with the same job, if it is there;
            overwrite = replaces what is there.
    """

    tracking_uri: str
    model: str
    input: str
    output: str
    config: ScoringConfig
    retry: RetryPolicy
    mode: Mode = "new"


@dataclass(frozen=True)
class Scored:
    """What a job did.

    Attributes:
        model: URI of the version, by number.
        output: its location.
        rows: in and out.
        pieces, pieces_before: pieces of work, and those of them an earlier start had done.
        files: of the output.
        seconds: from the first piece that began to the last that ended, and all in all.
        results: of the pieces scored now.
    """

    model: str
    output: str
    rows: int
    pieces: int
    pieces_before: int
    files: int
    seconds: float
    seconds_in_all: float
    results: tuple[ItemResult, ...] = ()

    def summary(self) -> dict[str, Any]:
        """As plain JSON (``--summary``)."""
        tree = asdict(self)
        del tree["results"]
        rows_now = sum(result.record.item.rows for result in self.results)
        return tree | {"rows_per_second": rows_now / self.seconds if self.seconds else 0.0}


def score(
    job: ScoringJob, ray_config: RayConfig, console: RunConsole, runner: Runner | None = None
) -> Scored:
    """Scores every row of the input once; the output appears when it is complete.

    Args:
        job: what.
        ray_config: the cluster.
        console: hears where it is.
        runner: scores pieces of work; absent = Ray, started or joined when there is work.

    Raises:
        TrackingError: there is no such version.
        ScoringError, OutageError, ConfigError, StorageError: it cannot be done; names the file,
            the column or the option. What is done stays, for ``resume``.
    """
    started = time.monotonic()
    model = "models:/{}/{}".format(*resolve_version(job.tracking_uri, job.model))
    listing, place = list_files(job.input), OutputPlace(job.output)
    _check_apart(listing, place)
    with tempfile.TemporaryDirectory(prefix="ple-scoring-") as folder:
        path = download_version(job.tracking_uri, model, folder)
        scorer = _loaded(path, model)
        inputs = check_inputs(listing, scorer, job.config, job.retry)
        items = plan_items(inputs, job.config.rows_per_file)
        identity = JobIdentity.of(model, Path(path), inputs, job.config)
        if not place.begin(identity, job.mode):
            console.note(f"{place.final.location} is complete already, with scores of {model}")
            return Scored(model, place.final.location, inputs.rows, len(items), len(items), 0, 0, 0)
        records = place.done(items) if job.mode == "resume" else {}
        left = [item for item in items if item.number not in records]
        _announce(model, inputs, items, left, console)
        task = ScoringTask(
            inputs.store,
            place.working,
            job.config,
            identity.token,
            model,
            job.retry,
            uuid4().hex[:8],
        )
        where = ModelSource(path, job.tracking_uri, model)
        results = _run(where, task, left, ray_config, console, runner)
    records |= {result.record.item.number: result.record for result in results}
    manifest = _manifest(identity, inputs, records, score_columns(scorer, job.config))
    place.publish(manifest)
    return Scored(
        model,
        place.final.location,
        inputs.rows,
        len(items),
        len(items) - len(left),
        len(manifest["outputs"]),
        max((r.ended for r in results), default=0) - min((r.began for r in results), default=0),
        time.monotonic() - started,
        tuple(results),
    )


def _run(
    model: ModelSource,
    task: ScoringTask,
    items: Sequence[WorkItem],
    ray_config: RayConfig,
    console: RunConsole,
    runner: Runner | None,
) -> list[ItemResult]:
    if not items:
        return []
    if runner is None:
        with ray_cluster(ray_config):
            return _run(model, task, items, ray_config, console, score_on_ray)
    results: list[ItemResult] = []
    rows, wanted = 0, sum(item.rows for item in items)
    with console:
        for result in runner(model, task, items):
            results.append(result)
            rows += result.record.item.rows
            console.status(f"{rows:,} of {wanted:,} rows, {len(results)}/{len(items)} pieces")
    return results


def _manifest(
    identity: JobIdentity,
    inputs: Inputs,
    records: dict[int, ItemRecord],
    columns: list[str],
) -> dict[str, Any]:
    """Everything about a complete output. Raises ScoringError where rows of a file are missing."""
    outputs = []
    rows_of: Counter[str] = Counter()
    for _, record in sorted(records.items()):
        item = record.item
        for file in record.files:
            rows_of[item.path] += file.rows
            outputs.append(asdict(file) | {"input": item.path, "first_row": item.first_row})
    for source in inputs.files:
        if rows_of[source.path] != source.rows:
            raise ScoringError(
                f"{inputs.store.name_of(source.path)}: has {source.rows:,} rows, its scores have "
                f"{rows_of[source.path]:,}; nothing was published, score again with --overwrite"
            )
    return {
        "format_version": FORMAT_VERSION,
        "model": identity.model,
        "score_columns": columns,
        "rows": inputs.rows,
        "inputs": [{"path": file.path, "rows": file.rows} for file in inputs.files],
        "outputs": outputs,
        "job": identity.tree(),
    }


def _loaded(path: str, model: str) -> RowScorer:
    try:
        return RowScorer.load(path)
    except (OSError, ValueError, RuntimeError, KeyError, pa.ArrowException) as error:
        raise ScoringError(
            f"{model}: cannot be loaded by this code ({error}); use the revision it was registered "
            "with, or register it again"
        ) from error


def _check_apart(listing: Listing, place: OutputPlace) -> None:
    """The next job on the same input would score this one's output."""
    source = listing.store
    same = source.filesystem.type_name == place.final.filesystem.type_name
    if same and listing.deep and f"{place.final.root}/".startswith(f"{source.root}/"):
        raise ScoringError(
            f"--output {place.final.location}: lies in the input's folder {source.location}; give "
            "a folder outside of it"
        )


def _announce(
    model: str,
    inputs: Inputs,
    items: Sequence[WorkItem],
    left: Sequence[WorkItem],
    console: RunConsole,
) -> None:
    text = (
        f"{model}: {inputs.rows:,} rows of {len(inputs.files):,} file(s) in {len(items):,} piece(s)"
    )
    if len(left) < len(items):
        text += f", {len(items) - len(left):,} of them done and verified"
    console.note(text)
