"""What every run of a comparison reads: written once, linked into each run's folder."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.comparison.runs import RunSpec
from pipeline.config.features import FeaturesConfig
from pipeline.data.fitting import with_table_widths
from pipeline.data.manifest import Manifest
from pipeline.data.slices import SliceColumn, save_slices
from pipeline.data.transforms import FeatureTransforms


class RunInputs:
    """Transforms, manifest and slices for the folders of runs.

    Kinds may have tables of different widths (``compare.tables``), and the transforms say how wide
    tables are: they are written once for each width.

    Args:
        folder: where they are kept; written when the first run needs them.
        transforms, manifest, slices: of the dataset.
    """

    def __init__(
        self,
        folder: Path,
        transforms: FeatureTransforms,
        manifest: Manifest,
        slices: Sequence[SliceColumn],
    ) -> None:
        self._folder = folder
        self._transforms, self._manifest, self._slices = transforms, manifest, slices
        self._written: dict[str, Path] = {}

    def link(self, run_folder: Path, spec: RunSpec) -> None:
        """Gives the folder of a run its ``transforms`` and ``dataset``."""
        dataset = self._folder / "dataset"
        if not self._written:
            self._manifest.save(dataset)
            save_slices(self._slices, dataset)
        transforms = self._transforms_of(spec.experiment.features)
        (run_folder / "dataset").symlink_to(dataset)
        (run_folder / "transforms").symlink_to(transforms)

    def _transforms_of(self, features: FeaturesConfig) -> Path:
        key = features.model_dump_json()
        if key not in self._written:
            folder = self._folder / f"transforms-{len(self._written)}"
            with_table_widths(self._transforms, features).save(folder)
            self._written[key] = folder
        return self._written[key]
