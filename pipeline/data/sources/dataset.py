"""The one way from an experiment to the data it names."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Experiment
from pipeline.data.manifest import DatasetError, Manifest, load_manifest
from pipeline.data.sources.catalog import open_catalog
from pipeline.data.sources.listing import data_root


@dataclass(frozen=True)
class Dataset:
    """Data ready to be read.

    Attributes:
        manifest: what it consists of; ``root`` says where its shards are.
        folder: what holds its statistics and vocabularies: the dataset itself, or its catalog.
    """

    manifest: Manifest
    folder: str


def open_dataset(
    experiment: Experiment, note: Callable[[str], None] = lambda text: None
) -> Dataset:
    """The experiment's data: what jobs.prepare wrote to data.path, or the files of data.splits.

    Args:
        experiment: with absolute paths.
        note: told what is being done, where it may take long.

    Raises:
        DatasetError: there is no such data, or it cannot be used.
    """
    data = experiment.data
    if data.splits is None:
        return Dataset(replace(load_manifest(data.path), root=data.path), data.path)
    try:
        folder = open_catalog(experiment, note)
    except OSError as error:
        raise DatasetError(f"data.path: {error}") from error
    return Dataset(saved_manifest(experiment, folder), str(folder))


def saved_manifest(experiment: Experiment, folder: str | Path) -> Manifest:
    """A manifest that this run keeps in a folder of its own, ``root`` as the experiment has it.

    On disk ``root`` is without credentials. Raises DatasetError if it is not there.
    """
    return replace(load_manifest(folder), root=data_root(experiment.data))
