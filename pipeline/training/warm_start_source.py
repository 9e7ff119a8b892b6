"""The source of a warm start, as it is kept in the run folder for the workers and for a resume.

``init/source.json`` says what it is, ``init/transforms`` holds its transforms, and the weights of a
registered version lie beside them; a checkpoint's stay where they are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ple
from pipeline.checkpoint.files import commit_file
from pipeline.config import Experiment
from pipeline.config.init import InitConfig
from pipeline.config.locations import inside
from pipeline.config.model import ModelConfig
from pipeline.config.tasks import TaskConfig
from pipeline.data.storage import Store, open_store
from pipeline.data.transforms import FeatureTransforms
from pipeline.model import tables_of
from pipeline.training.warm_start_parts import describe
from pipeline.training.warm_start_plan import (
    InitPlan,
    WarmStartError,
    check_names,
    make_plan,
    renames_of,
)
from pipeline.training.warm_start_weights import CheckpointWeights, SourceWeights, VersionWeights

FOLDER = "init"
WEIGHTS = "weights.safetensors"
_FILE, _TRANSFORMS, _FORMAT = "source.json", "transforms", 1
_COPY_BYTES = 32 << 20


@dataclass(frozen=True)
class WarmSource:
    """A trained model to start from.

    Attributes:
        label: how messages and tags call it.
        model, tasks: of its experiment.
        transforms: of its features.
        location: the folder of a checkpoint, or of a version's weights; as long as it is not yet in
            the run folder, of the latter too.
        precision: of a version's tables; None = it is a checkpoint.
        in_storage: of a checkpoint: its location is one below storage.path.
    """

    label: str
    model: ModelConfig
    tasks: tuple[TaskConfig, ...]
    transforms: FeatureTransforms
    location: str
    precision: ple.Precision | None = None
    in_storage: bool = False

    def experiment(self, like: Experiment) -> Experiment:
        """An experiment with the source's model and tasks; all else is of ``like``."""
        return like.model_copy(update={"model": self.model, "tasks": list(self.tasks)})

    def plan(self, experiment: Experiment, transforms: FeatureTransforms) -> InitPlan:
        """What a new model takes of it.

        Args:
            experiment: of the new model; its ``init`` section renames.
            transforms: of the new model.

        Raises:
            WarmStartError: nothing matches, or a name in ``init`` is none.
        """
        renames = renames_of(experiment.init)
        here = describe(experiment, transforms, renames)
        there = describe(self.experiment(experiment), self.transforms)
        check_names(experiment.init, here, there)
        return make_plan(here, there, renames)

    def weights(self, experiment: Experiment) -> SourceWeights:
        """Opens its weights; ``experiment`` is any. Raises OSError, ValueError, CheckpointError."""
        location = self.location
        if self.in_storage:
            location = inside(experiment.storage.path, location)
        store = open_store(location)
        if self.precision is None:
            return CheckpointWeights(store)
        tables = tables_of(self.experiment(experiment), self.transforms)
        return VersionWeights(store, WEIGHTS, tables, self.precision)

    def save(self, run_folder: str, init: InitConfig) -> None:
        """Writes it into a run folder; the weights of a version are copied. Raises OSError."""
        place = inside(run_folder, FOLDER)
        store = open_store(place)
        if self.precision is not None:
            _copy(open_store(self.location), store, WEIGHTS)
        self.transforms.save(inside(place, _TRANSFORMS))
        tree = {
            "format": _FORMAT,
            "label": self.label,
            "model": self.model.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json") for task in self.tasks],
            "location": self.location if self.precision is None else None,
            "precision": self.precision,
            "in_storage": self.in_storage,
            "init": init.model_dump(mode="json"),
        }
        # Last: what is not whole is no source.
        commit_file(store, _FILE, (json.dumps(tree, indent=1) + "\n").encode())


def saved_source(run_folder: str) -> tuple[WarmSource, InitConfig] | None:
    """The source that a run was begun with, and its mapping; None = it began fresh.

    Raises:
        WarmStartError: written by another version of this code.
        OSError: it cannot be read.
    """
    place = inside(run_folder, FOLDER)
    store = open_store(place)
    if not store.is_file(_FILE):
        return None
    tree = json.loads(store.read_text(_FILE))
    if tree["format"] != _FORMAT:
        raise WarmStartError(
            f"{store.name_of(_FILE)}: written by another version of this code; start the run again"
        )
    model, tasks = parse_model(tree["model"], tree["tasks"])
    source = WarmSource(
        label=tree["label"],
        model=model,
        tasks=tasks,
        transforms=FeatureTransforms.load(inside(place, _TRANSFORMS)),
        location=place if tree["location"] is None else tree["location"],
        precision=tree["precision"],
        in_storage=tree["in_storage"],
    )
    return source, InitConfig.model_validate(tree["init"])


def parse_model(
    model: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]
) -> tuple[ModelConfig, tuple[TaskConfig, ...]]:
    """The sections of an experiment from plain trees. Raises pydantic's ValidationError."""
    parsed = tuple(TaskConfig.model_validate(dict(task)) for task in tasks)
    return ModelConfig.model_validate(dict(model)), parsed


def _copy(source: Store, target: Store, name: str) -> None:
    """Copies a file piece by piece."""
    with source.open_input(name) as read, target.explaining(name), target.open_output(name) as out:
        while piece := read.read_buffer(_COPY_BYTES):
            out.write(piece)
