"""Finds what ``--init-from`` names: a registered version, a run, or a checkpoint."""

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.checkpoint.catalog import read_marker
from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.files import below
from pipeline.checkpoint.marker import MARKER, DamagedMarkerError, Marker
from pipeline.config import ConfigError, Experiment
from pipeline.config.init import InitConfig
from pipeline.config.load import load_experiment
from pipeline.config.locations import inside, is_uri, mask, without_credentials
from pipeline.data.manifest import DatasetError
from pipeline.data.storage import Store, open_store
from pipeline.data.transforms import FeatureTransforms
from pipeline.registry import scorer
from pipeline.registry.client import download_version, resolve_version
from pipeline.registry.tracking import Tracker
from pipeline.training.warm_start_plan import WarmStartError
from pipeline.training.warm_start_source import WarmSource, parse_model, saved_source

REPORT = "init.json"
_CHECKPOINTS = "checkpoints"


class Beginning:
    """How a run begins: fresh, or from the weights of another model.

    Says at once what is taken, resized and fresh; writes nothing before :meth:`begin`.

    Args:
        experiment: of the new run.
        init_from: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, the id of a run under
            storage.path, or the folder of a checkpoint or of a run; None = the run begins fresh.
        transforms: of the new run's features.
        resumed: the folder of a run that began before: what it began with stays; None = a new run.
        note: told line by line.

    Raises:
        ConfigError: there is a mapping in ``init``, and no source; or not that of the resumed run.
        WarmStartError: there is no such source, or nothing in it matches.
        TrackingError: MLflow has no such version, or does not answer.
        OSError: the source cannot be read.
    """

    def __init__(
        self,
        experiment: Experiment,
        init_from: str | None,
        transforms: FeatureTransforms,
        resumed: str | None,
        note: Callable[[str], None],
    ) -> None:
        self._experiment = experiment
        self._source: WarmSource | None = None
        if resumed is not None:
            _check_resumed(experiment, resumed)
            if init_from is not None:
                note("--init-from: left aside, this run goes on with its own weights")
            return
        if init_from is None:
            if experiment.init != InitConfig():
                raise ConfigError(
                    "init: has an effect with --init-from only; give a source or remove the section"
                )
            return
        self._source = self._found(init_from)
        self._plan = self._source.plan(experiment, transforms)
        note(f"starting from {self._source.label}:")
        for line in self._plan.lines():
            note(f"  {line}")
        note("  optimizers, schedules and the balance of losses start anew")

    def begin(self, tracker: Tracker, run_folder: str) -> None:
        """Puts the source into the run folder, for the workers, and the report into MLflow."""
        if self._source is None:
            return
        self._source.save(run_folder, self._experiment.init)
        tracker.set_tags({"init.from": self._source.label})
        tracker.log_dict({"from": self._source.label, **self._plan.to_tree()}, REPORT)

    def _found(self, text: str) -> WarmSource:
        if text.startswith("models:/"):
            return self._version(text)
        storage = self._experiment.storage.path
        if "/" not in text and open_store(inside(storage, text)).exists(_CHECKPOINTS):
            return _checkpoint(storage, f"{text}/{_CHECKPOINTS}", in_storage=True)
        location = text if is_uri(text) else str(Path(text).resolve())
        if location != without_credentials(location):
            raise WarmStartError(
                f"--init-from {mask(text)}: a run keeps where it began, but no credentials: give "
                "them the way the store's own tools take them, and leave them out here"
            )
        store = open_store(location)
        if store.is_file(MARKER):
            return _checkpoint(location, "", in_storage=False)
        if store.exists(_CHECKPOINTS):
            return _checkpoint(location, _CHECKPOINTS, in_storage=False)
        raise WarmStartError(
            f"--init-from {mask(text)}: neither a run under {mask(storage)} that kept its "
            "checkpoints, nor the folder of a checkpoint or a run; give models:/NAME/VERSION, "
            "models:/NAME@ALIAS, a run id or such a folder (a finished run keeps its checkpoints "
            "with storage.keep_checkpoint only)"
        )

    def _version(self, uri: str) -> WarmSource:
        folder = tempfile.mkdtemp(prefix="ple-init-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        name, version = resolve_version(self._experiment, uri)
        label = f"models:/{name}/{version}"
        bundle = scorer.bundle_folder(download_version(self._experiment, label, folder))
        description = scorer.read_description(bundle)
        trained = load_experiment(bundle / scorer.EXPERIMENT_FILE)
        return WarmSource(
            label=label,
            model=trained.model,
            tasks=tuple(trained.tasks),
            transforms=FeatureTransforms.load(bundle / scorer.TRANSFORMS_FOLDER),
            location=str(bundle),
            precision=description["table_precision"],
        )


def _check_resumed(experiment: Experiment, run_folder: str) -> None:
    """Refuses a mapping in ``init`` that a resumed run did not begin with."""
    found = saved_source(run_folder)
    if experiment.init != (InitConfig() if found is None else found[1]):
        raise ConfigError(
            f"init: {mask(run_folder)} began with another mapping, and a run takes weights once; "
            "resume it with the section it began with"
        )


def _checkpoint(base: str, folder: str, *, in_storage: bool) -> WarmSource:
    """A checkpoint, or of a folder of checkpoints the best one of the newest's run.

    Args:
        base: a location.
        folder: of the checkpoint or the checkpoints, below it; "" = itself.
        in_storage: the base is storage.path.
    """
    location = inside(base, folder) if folder else base
    store = open_store(location)
    if folder:
        marker = _chosen(store)
        name = f"step-{marker.step:08d}"
        folder, location = f"{folder}/{name}", inside(location, name)
        store = below(store, name)
    else:
        marker = _marker(store)
    model, tasks = _model_of(marker, store)
    try:
        transforms = FeatureTransforms.load(inside(_above(location, 2), "transforms"))
    except DatasetError as error:
        raise WarmStartError(
            f"{store.location}: without the transforms of its run, which lie beside its folder of "
            f"checkpoints, its rows have no meaning ({error}); give the checkpoint where its run "
            "left it"
        ) from error
    return WarmSource(
        label=store.location,
        model=model,
        tasks=tasks,
        transforms=transforms,
        location=folder if in_storage else location,
        in_storage=in_storage,
    )


def _chosen(store: Store) -> Marker:
    """The checkpoint that the newest whole one calls the best, or else the newest."""
    markers: dict[int, Marker] = {}
    for file in store.files(f"step-*/{MARKER}"):
        try:
            marker = read_marker(below(store, file.path.partition("/")[0]))
        except (DamagedMarkerError, FileNotFoundError):
            continue  # being replaced, or removed at this moment
        markers[marker.step] = marker
    if not markers:
        raise WarmStartError(f"{store.location}: no complete checkpoint there")
    newest = markers[max(markers)]
    return newest if newest.best_step is None else markers.get(newest.best_step, newest)


def _marker(store: Store) -> Marker:
    try:
        return read_marker(store)
    except DamagedMarkerError as error:
        raise CheckpointError(f"{store.location}: its marker {error}") from error


def _model_of(marker: Marker, store: Store) -> tuple[Any, Any]:
    """Model and tasks of the run that saved a checkpoint, from its identity."""
    identity = marker.identity
    try:
        tree = dict(identity["model"])
        order = tree.pop("group_order")
        if tree["groups"] is not None:
            tree["groups"] = {name: tree["groups"][name] for name in order}
        tree["levels"] = [tree["levels"][str(n)] for n in range(len(tree["levels"]))]
        tasks = [identity["tasks"][name] for name in identity["tasks"]["order"]]
        return parse_model(tree, tasks)
    except (KeyError, TypeError, ValidationError) as error:
        raise WarmStartError(
            f"{store.location}: its marker does not describe a model that this code knows "
            f"({type(error).__name__}: {error}); give a registered version instead"
        ) from error


def _above(location: str, levels: int) -> str:
    """The folder so many levels above, in front of the options of a URI."""
    base, mark, options = location.partition("?")
    for _ in range(levels):
        base = base.rstrip("/").rpartition("/")[0]
    return f"{base}{mark}{options}"
