"""The actor pool of Ray Data: each actor holds the model and takes pieces of work.

What flows through Ray is the pieces' descriptions; the actors read and write Parquet themselves.
Rows in Ray's object store would be copied and cut twice, and Ray Data's writer does not say which
file holds which rows.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray
import ray.data

from pipeline.config import ConfigError
from pipeline.config.scoring import ScoringConfig
from pipeline.scoring.errors import ScoringError
from pipeline.scoring.item import ItemRecord, ScoringTask, note_attempt, score_item
from pipeline.scoring.plan import WorkItem


@dataclass(frozen=True)
class ModelSource:
    """Where actors get the model.

    Attributes:
        folder: the artifact on the driver's machine.
        tracking_uri: MLflow, asked by actors on other machines.
        uri: the version by number.
    """

    folder: str
    tracking_uri: str
    uri: str


@dataclass(frozen=True)
class ItemResult:
    """A scored piece of work.

    Attributes:
        record: what came out.
        worker: identifies the actor.
        began, ended: seconds since the epoch.
        cpu_seconds: processor time spent on it.
    """

    record: ItemRecord
    worker: str
    began: float
    ended: float
    cpu_seconds: float


Runner = Callable[[ModelSource, ScoringTask, Sequence[WorkItem]], Iterator[ItemResult]]


class ScoringActor:
    """Loads the model once; a call scores the pieces of work of one block, on one thread."""

    def __init__(self, model: ModelSource, task: ScoringTask) -> None:
        import torch

        from pipeline.registry.scorer import RowScorer

        torch.set_num_threads(1)
        pa.set_cpu_count(1)
        self._task = task
        folder = model.folder
        if not Path(folder).is_dir():  # this is another machine than the driver's
            from pipeline.registry.client import download_version

            with tempfile.TemporaryDirectory(prefix="ple-scoring-") as fetched:
                self._scorer = RowScorer.load(
                    download_version(model.tracking_uri, model.uri, fetched)
                )
        else:
            self._scorer = RowScorer.load(folder)

    def __call__(self, items: pa.Table) -> pa.Table:
        return pa.table({"result": [self._result(text) for text in items["item"].to_pylist()]})

    def _result(self, text: str) -> str:
        """As JSON; a fault of the data travels as a result, so that it arrives as it was said."""
        began, cpu = time.time(), time.process_time()
        try:
            item = WorkItem.parse(text)
            note_attempt(self._task, item)
            record = score_item(self._scorer, self._task, item)
        except (ValueError, OSError) as error:
            if not type(error).__module__.startswith("pipeline."):
                raise
            return json.dumps({"fault": str(error)})
        return json.dumps(
            {
                "record": record.text(),
                "worker": f"{ray.get_runtime_context().get_node_id()}:{os.getpid()}",
                "began": began,
                "ended": time.time(),
                "cpu_seconds": time.process_time() - cpu,
            }
        )


def score_on_ray(
    model: ModelSource, task: ScoringTask, items: Sequence[WorkItem]
) -> Iterator[ItemResult]:
    """Scores pieces of work on the Ray that is running, as they become ready.

    Ray Data replaces an actor that dies and does its piece again, for ever; what ends that is
    ``note_attempt``.

    Raises:
        ConfigError: more actors than the cluster has CPUs.
        ScoringError: a piece cannot be scored, or kills every actor that tries.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a large piece may take longer than any limit
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    described = [{"item": item.text()} for item in items]
    pieces = ray.data.from_items(described, override_num_blocks=len(described))
    scored = pieces.map_batches(
        ScoringActor,
        fn_constructor_kwargs={"model": model, "task": task},
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=_actors(task.config, len(items))),
        num_cpus=1,
    )
    for batch in scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text in batch["result"].to_pylist():
            yield _parsed(text)


def _actors(config: ScoringConfig, items: int) -> int:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if config.actors == "auto":
        return max(1, min(cpus, items))
    if config.actors > cpus:
        raise ConfigError(
            f"scoring.actors: {config.actors} actors need as many CPUs, Ray has {cpus}; lower it, "
            "use auto, or join a larger cluster with ray.address"
        )
    return min(config.actors, items)


def _parsed(text: str) -> ItemResult:
    tree = json.loads(text)
    if "fault" in tree:
        raise ScoringError(tree["fault"])
    return ItemResult(**(tree | {"record": ItemRecord.parse(tree["record"])}))
