"""``--plan-only`` on a prepared dataset: what it prints and writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.prepare import main as prepare
from jobs.train import main as train
from pipeline.config import ConfigError, load_experiment
from pipeline.data.fitting import fit_transforms, load_statistics
from pipeline.data.manifest import load_manifest
from pipeline.data.storage import open_store
from pipeline.training.plan_checks import check_plan
from pipeline.training.pooling import (
    load_pooling_factors,
    pooling_factors,
    save_pooling_factors,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "data"
    assert prepare(["clicklog", "--rows", "3000", "--output", str(folder)]) == 0
    return folder / "experiment.yaml"


def loaded(config: Path, *overrides: str) -> tuple[Any, Any]:
    experiment = load_experiment(config, overrides)
    return experiment, fit_transforms(experiment.features, config.parent)


def test_pooling_factors_are_mean_ids_per_row(config: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    _, transforms = loaded(config)
    manifest = load_manifest(config.parent)
    statistics = load_statistics(open_store(str(config.parent)), manifest)
    factors = pooling_factors(transforms, statistics, manifest.rows("train"))
    tables = [pq.read_table(config.parent / shard.path) for shard in manifest.splits["train"]]
    for name in ("item_tags", "interests"):
        ids = sum(len(table[name].combine_chunks().flatten().drop_null()) for table in tables)
        assert factors[name] == pytest.approx(ids / manifest.rows("train"))
    assert set(factors) == {"item_tags", "interests"}
    save_pooling_factors(factors, tmp_path)
    assert load_pooling_factors(tmp_path) == factors
    assert load_pooling_factors(tmp_path / "elsewhere") == {}


def test_the_plan_is_printed_and_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "plan.json"
    arguments = ["--config", str(config), "--plan-only", "--workers", "4", "--summary"]
    assert train([*arguments, str(summary), "sharding.types=[row_wise]"]) == 0
    printed = capsys.readouterr().out
    for words in ("item_tags", "row_wise", "memory by rank", "predicted step", "GFLOP"):
        assert words in printed
    plan = json.loads(summary.read_text())
    assert len(plan["memory"]) == plan["workers"]["count"] == 4
    tags = next(table for table in plan["tables"] if table["table"] == "item_tags")
    assert tags["ranks"] == [0, 1, 2, 3]
    assert tags["pooling_factor"] > 1.5


def test_profile_sets_the_steps_that_are_traced(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, steps in (([], None), (["--profile"], 5)):
        assert train(["--config", str(config), "--print-config", *arguments]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["train"]["profile_steps"] == steps


def test_workers_without_plan_only_are_refused(config: Path) -> None:
    with pytest.raises(SystemExit):
        train(["--config", str(config), "--workers", "4"])
    with pytest.raises(SystemExit):
        train(["--config", str(config), "--plan-only", "--profile"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--workers", "4", "--workers-per-node", "3"], "choose a divisor"),
        (["sharding.ddr_gb=0.0001"], "does not fit"),
        (["--workers", "8", "train.device=cuda", "sharding.kernel=uvm"], "sharding.hbm_gb"),
    ],
)
def test_refusals_name_the_remedy(
    config: Path, settings: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(["--config", str(config), "--plan-only", *settings]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "device", "says"),
    [
        (["sharding.tables.item_tagz.types=[row_wise]"], "cpu", "nearest: item_tags"),
        (["sharding.kernel=uvm"], "cpu", "use fused"),
        (
            [
                "sharding.tables.item_tags.types=[column_wise]",
                "table_optimizer.kind=sgd",
                "features.embedding_dim=12",
            ],
            "cpu",
            "multiple of 8",
        ),
        (
            [
                "features.categorical.item_id.encoder=zero_collision",
                "features.categorical.item_id.rows=4096",
                "sharding.tables.item_id.types=[table_wise]",
            ],
            "cuda",
            "use row_wise",
        ),
    ],
)
def test_tables_that_cannot_go_there_are_refused(
    config: Path, overrides: list[str], device: str, says: str
) -> None:
    experiment, transforms = loaded(config, *overrides)
    with pytest.raises(ConfigError, match=says):
        check_plan(experiment, transforms, device)
