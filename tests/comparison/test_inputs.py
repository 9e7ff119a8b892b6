"""What runs are given: one copy for all, transforms by table widths."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from small_datasets import write_dataset

from pipeline.comparison.inputs import RunInputs
from pipeline.comparison.runs import run_spec
from pipeline.config import Experiment
from pipeline.data.fitting import fit_transforms
from pipeline.data.manifest import load_manifest
from pipeline.data.transforms import FeatureTransforms


def test_runs_share_what_is_equal_and_have_tables_of_their_width(
    experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    table = pa.table({"user": ["a", "b"], "age": [1.0, 2.0]})
    roles = {"user": "categorical", "age": "numeric"}
    manifest = write_dataset(tmp_path / "data", {"train": [(table, 2)]}, roles)
    config = experiment()
    transforms = fit_transforms(config.features, tmp_path / "data")
    inputs = RunInputs(tmp_path / "common", transforms, manifest, ())
    places = []
    for number, width in enumerate((16, 4, 16)):
        features = config.features.model_copy(update={"embedding_dim": width})
        spec = run_spec(
            config.model_copy(update={"features": features}), "digest", "ple", None, number
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        inputs.link(folder, spec)
        read = FeatureTransforms.load(folder / "transforms")
        assert [table.dim for table in read.tables] == [width]
        assert read.encode(table).ids_FB.tolist() == transforms.encode(table).ids_FB.tolist()
        assert load_manifest(folder / "dataset").digest == manifest.digest
        places.append((folder / "transforms").resolve())
    assert places[0] == places[2] != places[1]
