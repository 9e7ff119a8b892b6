"""What `data.faults` lets a judgement pass over: counted by place, the rest judged as it is."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damage import flip_data_page
from small_datasets import fit_one

import ple
from pipeline.backtest.judging import Judge
from pipeline.backtest.raw_rows import RawBatch, open_rows
from pipeline.backtest.skipped_rows import SkippedRows
from pipeline.backtest.versions import LoadedVersion
from pipeline.config.faults import FaultsConfig
from pipeline.config.features import CategoricalFeature
from pipeline.config.load import parse_experiment
from pipeline.data.faults import ShardError
from pipeline.data.losses import Loss
from pipeline.data.manifest import DatasetError
from pipeline.model import build_ranker, build_served_ranker, tables_of
from pipeline.registry.scorer import RowScorer

GROUP = 80_000


def experiment(**sections):
    tree = {
        "name": "small",
        "data": {"path": "data"},
        "features": {"categorical": [{"name": "tags", "weights": "relevance"}]},
        "tasks": [{"name": "click"}],
        "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}]},
    }
    return parse_experiment(tree | sections)


def test_a_row_group_damaged_midway_loses_what_was_not_decoded(tmp_path):
    path = tmp_path / "a.parquet"
    rows = pa.table({"n": np.random.default_rng(0).permutation(2 * GROUP)})
    options = {"use_dictionary": False, "compression": "zstd", "data_page_size": 16_384}
    pq.write_table(rows, path, row_group_size=GROUP, **options)
    flip_data_page(path, 0)  # its last page
    faults = {"unreadable": "skip_row_group", "max_lost_fraction": 0.5}
    place = {"rows": {"files": str(path)}}
    found = experiment(data={"path": "data", "faults": faults}, promotion=place)
    source = open_rows(found, found.promotion, "promotion")
    skipped = SkippedRows(source.name, source.faults)
    batches = list(source.batches(["n"], skipped=skipped))

    numbers = rows["n"].to_numpy()
    given = [b.rows["n"].to_numpy(zero_copy_only=False) for b in batches if b.group == 0]
    decoded = sum(map(len, given))
    assert 0 < decoded < GROUP
    np.testing.assert_array_equal(np.concatenate(given), numbers[:decoded])
    later = [b.rows["n"].to_numpy(zero_copy_only=False) for b in batches if b.group == 1]
    np.testing.assert_array_equal(np.concatenate(later), numbers[GROUP:])
    (loss,) = skipped.losses
    assert loss == Loss("promotion.rows", str(path), 0, "unreadable", GROUP - decoded, loss.reason)
    assert "row group 0 cannot be decoded" in loss.reason
    assert (skipped.rows, skipped.lost) == (2 * GROUP, GROUP - decoded)

    few = FaultsConfig.model_validate(faults | {"max_lost_fraction": 0.01})
    with pytest.raises(DatasetError, match=rf"{GROUP - decoded:,} of 160,000 rows"):
        list(source.batches(["n"], skipped=SkippedRows(source.name, few)))


@pytest.fixture
def version(tmp_path):
    lists = pa.array([[1, 2], [3], [4, 5, 6], []], pa.list_(pa.int64()))
    weights = pa.array([[1.0, 0.5], [2.0], [1.0, 1.0, 1.0], []], pa.list_(pa.float64()))
    feature = CategoricalFeature(name="tags", weights="relevance")
    vocabulary = [(n, 10) for n in range(1, 7)]
    transforms = fit_one(tmp_path, lists, feature, vocabulary, {"relevance": weights})
    of = experiment()
    torch.manual_seed(0)
    state = build_ranker(of, transforms, "cpu").state_dict()
    ranker = build_served_ranker(of, transforms, "fp32")
    state = ple.serving_state(state, tables_of(of, transforms))
    ranker.load_state_dict(state, strict=True, assign=True)
    schema = pa.schema([("tags", lists.type), ("relevance", weights.type)])
    scorer = RowScorer(of, transforms, ranker, schema)
    return LoadedVersion("models:/small/1", scorer, tmp_path, 1)


def test_rows_with_bad_ids_are_skipped_and_counted(version):
    tags = [[1], [2, 3], [4], None, [5, 6], [1]]
    weights = [[1.0], [1.0], [0.5], None, [1.0, 1.0, 1.0], [2.0]]  # rows 1 and 4 do not match
    rows = pa.record_batch(
        {
            "tags": pa.array(tags, pa.list_(pa.int64())),
            "relevance": pa.array(weights, pa.list_(pa.float64())),
            "click": pa.array([0, 1, 1, 0, 0, 1], pa.int8()),
        }
    )
    batch = RawBatch(rows, "a.parquet", 3, np.arange(100, 106))
    for policy in ("skip_row", "skip_row_group"):  # the latter costs no more here
        faults = FaultsConfig.model_validate({"ids": policy, "max_lost_fraction": 0.5})
        skipped = SkippedRows("promotion.rows", faults)
        judge = Judge([version], skipped)
        judged = judge.add(batch)
        good = [0, 2, 3, 5]
        assert judged.batch.numbers_B.tolist() == [100, 102, 103, 105]
        assert judged.labels_BT[:, 0].tolist() == [0, 1, 0, 1]
        wanted = version.predictions(pa.Table.from_batches([rows.take(pa.array(good))]), ["click"])
        torch.testing.assert_close(judged.predictions[0], wanted, rtol=1e-6, atol=1e-7)
        assert judge.rows == 4
        (loss,) = skipped.losses
        assert loss == Loss("promotion.rows", "a.parquet", 3, "ids", 2, loss.reason)
        assert loss.reason.startswith("column 'relevance', row 101: ")

    words = r"a.parquet: row group 3: column 'relevance', row 101: .*let data.faults.ids skip them"
    with pytest.raises(ShardError, match=words):
        Judge([version], SkippedRows("promotion.rows", FaultsConfig())).add(batch)
