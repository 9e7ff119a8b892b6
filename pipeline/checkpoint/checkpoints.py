"""The checkpoints of one run: saved beside the loop, verified, loaded on any number of workers.

A checkpoint is a folder ``step-00001234`` with raw tensors by worker and their index, plain trees
(shared, and one of each worker), the sharding plan, and ``marker.json``, written last. A folder
without a marker is none; one whose marker or files are not as they were written is passed over.
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from pipeline.checkpoint.background import BackgroundSave
from pipeline.checkpoint.catalog import Catalog, file_faults, folder_name, read_marker
from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.files import below, remove_folder
from pipeline.checkpoint.marker import (
    MARKER,
    DamagedMarkerError,
    Marker,
    check_identity,
    normalised,
    now_text,
)
from pipeline.checkpoint.plans import check_plans
from pipeline.checkpoint.reader import CheckpointReader, TensorKind, check_tensors, tensor_kinds
from pipeline.checkpoint.staging import StagedPlanner, Staging
from pipeline.checkpoint.trees import decode_tree, encode_tree
from pipeline.checkpoint.weights import Weights
from pipeline.checkpoint.workers import Workers, explained
from pipeline.checkpoint.writer import PLAN, SHARED, CheckpointWriter, ChiefPart, own_name
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.locations import inside
from pipeline.data.storage import Store, open_store

_logger = logging.getLogger(__name__)


class TrainingState(Protocol):
    """Everything of a run that a checkpoint holds, as seen by one worker."""

    def tensors(self) -> dict[str, Any]:
        """Nested dicts of tensors, ShardedTensors and DTensors: ``model`` (its state_dict),
        optimizers, ``average`` (by the weight's name). Loading fills these very tensors, so all
        that is to be loaded must be there (an optimizer's moments before its first step, too)."""

    def load_tensors(self, tree: dict[str, Any]) -> None:
        """Takes what ``tensors`` gave, filled."""

    def shared(self) -> dict[str, Any]:
        """A plain tree that is the same on all workers (``pipeline.checkpoint.trees``)."""

    def own(self) -> dict[str, Any]:
        """A plain tree of this worker."""

    def load_plain(self, shared: dict[str, Any], own: list[dict[str, Any]]) -> None:
        """Takes the trees back, after the tensors: ``own`` of all workers that saved, by rank."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that verified.

    Attributes:
        location: its folder, for ``load_unsharded``, too.
        step, score, best_step, world_size, identity: as saved (:class:`marker.Marker`).
    """

    location: str
    step: int
    score: float | None
    best_step: int | None
    world_size: int
    identity: dict[str, Any]


class Checkpoints:
    """Saves, keeps, verifies and loads. Every worker makes one, and every method is collective.

    A save copies the tensors into host memory that is kept for the next one, and returns; writing,
    checksums and the marker follow in a thread. A save that comes while one is being written waits
    for it. What fails there is raised on every worker by the next ``save`` or ``wait``: the folder
    of the failed one is gone then, the checkpoints before it are untouched.

    Args:
        location: folder of the run's checkpoints, a path that all workers share or a URI. What
            killed saves left there is removed.
        config: how many are kept.
        identity: what a run must share with a checkpoint to go on from it: name → JSON value.
        plan: the sharding plan (``TablePlan.to_tree``); None = a model without sharded tables.

    Attributes:
        skipped: checkpoints that ``newest`` or ``at`` passed over, each with the reason.

    Raises:
        CheckpointError: on all workers alike, from every method but ``close``.
    """

    def __init__(
        self,
        location: str,
        config: CheckpointConfig,
        identity: Mapping[str, Any],
        *,
        plan: Mapping[str, Any] | None,
    ) -> None:
        self._location = location
        self._store = open_store(location)
        self._config, self._plan = config, plan
        self._identity = normalised(identity)
        self._workers = Workers()
        self._staging = Staging()
        self._catalog = Catalog(self._store)  # read and used on the chief
        self._running: BackgroundSave | None = None
        self.skipped: list[str] = []
        name = self._store.location
        self._committed = self._workers.from_chief(f"reading {name}", self._read_catalog)

    def save(
        self,
        state: TrainingState,
        *,
        step: int,
        score: float | None = None,
        best_step: int | None = None,
    ) -> None:
        """Begins a checkpoint; returns when all of the state is copied.

        Args:
            state: of this worker.
            step: training steps done; a step that is saved already is left as it is.
            score: the selection metric, if this step was evaluated; higher is better.
            best_step: step of the best evaluation so far; its checkpoint is kept with this one.
        """
        self.wait()
        if step in self._committed:
            return
        planner = StagedPlanner(state.tensors(), self._staging)
        own, chief = encode_tree(state.own()), None
        if self._workers.is_chief:
            files = {SHARED: encode_tree(state.shared())}
            if self._plan is not None:
                files[PLAN] = (json.dumps(self._plan, indent=1) + "\n").encode()
            score = None if score is None or score != score else float(score)
            world_size, saved_at = self._workers.count, now_text()
            marker = Marker(step, score, best_step, world_size, self._identity, (), saved_at)
            chief = ChiefPart(files, marker)
        writer = CheckpointWriter(self._folder(step), self._workers.rank, own, chief)
        self._running = BackgroundSave(step, partial(self._write, step, planner, writer))

    def wait(self) -> None:
        """Returns when what was begun is committed."""
        running, self._running = self._running, None
        if running is not None:
            running.join()
            self._committed.add(running.step)

    def newest(self) -> SavedCheckpoint | None:
        """The newest checkpoint whose marker and files are as they were written, or None.

        Raises:
            CheckpointError: it is of another run (every difference is listed) or of a format
                version that this code does not know; or the store does not answer.
        """
        self.wait()
        self.skipped = []
        what = f"reading {self._store.location}"
        for step in self._workers.from_chief(what, self._listed):
            saved = self._examined(step)
            if saved is not None:
                return saved
        return None

    def at(self, step: int) -> SavedCheckpoint | None:
        """The checkpoint of a step, or None if there is none that is whole. Raises as newest."""
        self.wait()
        self.skipped = []
        listed = self._workers.from_chief(f"reading {self._store.location}", self._listed)
        return self._examined(step) if step in listed else None

    def load(self, saved: SavedCheckpoint, state: TrainingState) -> None:
        """Loads all of a checkpoint, saved on any number of workers.

        Later checkpoints are forgotten, and go with the next that is saved: training goes on from
        here. Tables may have moved between table-wise and row-wise plans; from and to others only
        if their sharding type stayed.
        """
        self.wait()
        store = self._folder(saved.step)
        what = f"loading {store.location}"
        reader = CheckpointReader(store)
        tree = state.tensors()
        trees: list[Any] = []

        def prepare() -> dict[str, TensorKind]:
            trees.extend(_read_trees(store, saved.world_size))
            if self._plan is not None and store.is_file(PLAN):
                check_plans(store.location, json.loads(store.read_text(PLAN)), self._plan)
            reader.read_metadata()
            return tensor_kinds(tree)

        kinds = self._workers.from_all(what, prepare)
        check_tensors(reader.metadata.state_dict_metadata, kinds, store.location)
        group = self._workers.group
        self._together(what, lambda: dcp.load(tree, storage_reader=reader, process_group=group))
        state.load_tensors(tree)
        state.load_plain(*trees)
        self._committed = {step for step in self._committed if step <= saved.step}
        self._catalog.forget_after(saved.step)

    def load_model(self, saved: SavedCheckpoint, model: nn.Module) -> None:
        """Loads the weights alone, averaged ones where there are, under any sharding plan."""
        self.wait()
        store = self._folder(saved.step)
        what = f"loading the weights of {store.location}"
        weights = Weights(store, model)
        self._workers.from_all(what, weights.check)
        self._together(what, lambda: weights.load(self._workers.group))

    def close(self) -> None:
        """Waits for what was begun. Raises nothing: call ``wait`` before to hear of a failure."""
        try:
            self.wait()
        except CheckpointError as error:
            _logger.warning("%s", error)

    def _folder(self, step: int) -> Store:
        return below(self._store, folder_name(step))

    def _read_catalog(self) -> set[int]:
        self._catalog.read()
        return set(self._catalog.markers)

    def _listed(self) -> list[int]:
        catalog = self._catalog
        return sorted({*catalog.markers, *catalog.damaged, *catalog.unknown}, reverse=True)

    def _examined(self, step: int) -> SavedCheckpoint | None:
        """The checkpoint if it is whole; else it is named in ``skipped``."""
        store, workers = self._folder(step), self._workers
        what = f"verifying {store.location}"
        marker = workers.from_chief(what, lambda: self._examined_marker(store))
        if isinstance(marker, str):
            faults = [marker]
        else:
            verify = partial(file_faults, store, marker, workers.rank, workers.count)
            faults = [fault for part in workers.from_all(what, verify) for fault in part]
            if not faults:
                location = inside(self._location, folder_name(step))
                m = marker
                return SavedCheckpoint(
                    location, step, m.score, m.best_step, m.world_size, m.identity
                )
        self.skipped.append(f"{store.location}: {', '.join(faults)}")
        self._committed.discard(step)
        self._catalog.found_damaged(step)
        return None

    def _examined_marker(self, store: Store) -> Marker | str:
        """The marker, or what is wrong with it."""
        try:
            marker = read_marker(store)
        except FileNotFoundError:
            return f"{MARKER} is missing"
        except DamagedMarkerError as error:
            return f"{MARKER} {error}"
        check_identity(store.location, marker.identity, self._identity)
        return marker

    def _write(self, step: int, planner: StagedPlanner, writer: CheckpointWriter) -> None:
        """What the thread does."""
        folder = self._folder(step)
        group, what = self._workers.group, f"saving {folder.location} (those before are untouched)"
        try:
            self._together(
                what,
                lambda: dcp.save({}, storage_writer=writer, planner=planner, process_group=group),
            )
        except CheckpointError:
            if self._workers.is_chief:
                with suppress(OSError):
                    remove_folder(folder, MARKER)
            raise
        if writer.marker is not None:
            self._catalog.markers[step] = writer.marker
            self._catalog.remove_superseded(self._config.keep_last, self._config.keep_best)

    @staticmethod
    def _together(what: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except (CheckpointException, Exception) as error:
            raise explained(what, error) from error


def _read_trees(store: Store, world_size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    shared = decode_tree(store.read_bytes(SHARED))
    return shared, [decode_tree(store.read_bytes(own_name(rank))) for rank in range(world_size)]
