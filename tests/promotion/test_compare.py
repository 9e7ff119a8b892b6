"""The figures of a comparison against scikit-learn on the versions' own scores."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import flip_page_header, replace, rewrite
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.backtest.raw_rows import open_rows
from pipeline.backtest.versions import LoadedVersion, VersionError
from pipeline.config.load import with_absolute_paths
from pipeline.data.losses import Loss
from pipeline.data.manifest import DatasetError
from pipeline.promotion.compare import NamedVersion, compare
from pipeline.promotion.evidence import evidence_page, evidence_tags, evidence_tree
from pipeline.registry.scorer import RowScorer

# Scores of a row differ in the last bit with the rows scored beside it; pairs of rows that all but
# tie may then change places.
ROUNDING = 1e-6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def versions(shop, tmp_path_factory):
    """A fitted version and one with noise on its weights, loaded as promotions load them."""
    folder = tmp_path_factory.mktemp("versions")

    def load(number, state):
        bundle = shop.bundle(folder / number, state) / "artifacts" / "bundle"
        loaded = LoadedVersion(f"models:/shop/{number}", RowScorer.load(bundle), bundle, 1000)
        return NamedVersion("shop", number, loaded)

    return load("1", shop.state()), load("2", shop.state(0.4))


@pytest.fixture(scope="module")
def rows(shop):
    return pq.read_table(shop.folder / "data" / "test")


def compared(shop, candidate, champion, faults=None, data=None, **promotion):
    settings = {"replicates": 200, "latency_calls": 3} | promotion
    place = {"path": str(data or shop.folder / "data"), "faults": faults or {}}
    evaluation = {"slices": ["device"], "max_slices": 2}
    experiment = with_absolute_paths(
        shop.configured(promotion=settings, evaluation=evaluation, data=place)
    )
    return compare(
        experiment, candidate, champion, open_rows(experiment, experiment.promotion, "promotion")
    )


@pytest.fixture(scope="module")
def comparison(shop, versions):
    champion, candidate = versions
    return compared(shop, candidate, champion)


def scores_of(version, rows):
    return version.loaded.scorer.score_table(rows)


def test_values_are_those_of_all_rows(comparison, versions, rows):
    champion, candidate = (scores_of(version, rows) for version in versions)
    click = rows["click"].to_numpy()
    assert comparison.rows == len(click) == 6000
    found = comparison.tasks[0]
    assert (found.name, found.rows, found.positives) == ("click", 6000, click.sum())
    new, old = (roc_auc_score(click, scores[:, 0]) for scores in (candidate, champion))
    assert found.candidate["auc"] == pytest.approx(new, abs=ROUNDING)
    assert found.champion["auc"] == pytest.approx(old, abs=ROUNDING)
    assert found.auc_difference.value == pytest.approx(new - old, abs=ROUNDING)
    ends = found.auc_difference.interval
    assert ends.low < new - old < ends.high
    # Noise on the weights has cost something, beyond doubt.
    assert ends.high < 0
    rise = log_loss(click, candidate[:, 0]) / log_loss(click, champion[:, 0]) - 1
    assert found.loss_rise.value == pytest.approx(rise, abs=1e-6)
    assert found.loss_rise.interval.low < rise < found.loss_rise.interval.high
    calibration = candidate[:, 0].sum() / click.sum()
    assert found.candidate["calibration"] == pytest.approx(calibration, abs=1e-6)
    assert found.calibration_interval.low < calibration < found.calibration_interval.high


def test_a_sample_space_is_honoured(comparison, versions, rows):
    clicked = rows["click"].to_numpy() == 1
    buy = rows["buy"].to_numpy()[clicked]
    _, candidate = (scores_of(version, rows)[clicked] for version in versions)
    found = comparison.tasks[1]
    assert (found.name, found.rows, found.positives) == ("buy", clicked.sum(), buy.sum())
    assert found.candidate["auc"] == pytest.approx(
        roc_auc_score(buy, candidate[:, 1]), abs=ROUNDING
    )


def test_other_tasks_are_compared_by_squared_error(comparison, versions, rows):
    spent = rows["spent"].to_numpy().astype(np.float32)
    errors = [np.square(scores_of(v, rows)[:, 2] - spent).mean() for v in versions]
    found = comparison.tasks[2]
    assert (found.loss_name, found.auc_difference) == ("squared error", None)
    assert found.loss_rise.value == pytest.approx(errors[1] / errors[0] - 1, rel=1e-4)


def test_slices_are_those_of_their_rows(comparison, versions, rows):
    device, click = rows["device"].to_numpy(), rows["click"].to_numpy()
    champion, candidate = (scores_of(version, rows)[:, 0] for version in versions)
    found = {(s.task, s.value): s for s in comparison.slices}
    assert {value for _, value in found} == {"phone", "desk", "(other)"}
    phone = found["click", "phone"]
    within = device == "phone"
    assert (phone.rows, phone.positives) == (within.sum(), click[within].sum())
    new, old = (roc_auc_score(click[within], s[within]) for s in (candidate, champion))
    assert phone.candidate_auc == pytest.approx(new, abs=ROUNDING)
    assert phone.difference.value == pytest.approx(new - old, abs=ROUNDING)
    assert phone.difference.interval.low < new - old < phone.difference.interval.high
    assert found["click", "(other)"].rows == (device == "tv").sum()


def test_a_version_against_itself_differs_by_nothing(shop, versions):
    found = compared(shop, versions[0], versions[0]).tasks[0]
    ends = found.auc_difference.interval
    assert (found.auc_difference.value, ends.low, ends.high) == (0, 0, 0)
    assert found.loss_rise.interval.high == pytest.approx(0, abs=1e-12)


def test_a_first_version_has_intervals_of_its_own(shop, versions, comparison):
    found = compared(shop, versions[1], None)
    task = found.tasks[0]
    assert (found.champion, task.champion, task.auc_difference, task.loss_rise) == (None,) * 4
    assert task.auc_interval == comparison.tasks[0].auc_interval
    assert found.slices == ()


def test_more_rows_than_the_cap_are_sampled_and_values_are_of_all(shop, versions, comparison):
    found = compared(shop, versions[1], versions[0], bootstrap_rows=2000)
    all_rows, sampled = comparison.tasks[0], found.tasks[0]
    assert sampled.auc_difference.value == all_rows.auc_difference.value
    intervals = [t.auc_difference.interval for t in (sampled, all_rows)]
    wide, narrow = (interval.high - interval.low for interval in intervals)
    assert 1.4 < wide / narrow < 2.8  # a quarter of the rows: twice as wide
    assert "a seeded sample of 1/4 of them" in found.bootstrap
    again = compared(shop, versions[1], versions[0], bootstrap_rows=2000)
    assert again.tasks[0].auc_difference == sampled.auc_difference


def test_rows_of_a_user_can_be_drawn_together(shop, versions):
    found = compared(shop, versions[1], versions[0], resample_by="user")
    assert "of 40 values of user" in found.bootstrap


def test_days_of_files_can_be_judged(shop, versions):
    logs = {"files": str(shop.folder / "logs/dt={date}"), "first_date": "2026-11-01"}
    found = compared(shop, versions[1], versions[0], rows=logs | {"last_date": "2026-11-02"})
    assert found.rows == 3000
    assert found.data.startswith("promotion.rows, 2026-11-01 to 2026-11-02: 4 files")


def test_tasks_that_are_defined_otherwise_are_told(shop, versions, tmp_path):
    tasks = [{"name": "click"}, {"name": "buy"}, {"name": "spent", "loss": "squared_error"}]
    other = shop.configured(tasks=tasks)
    bundle = shop.bundle(tmp_path / "a", shop.state(), other) / "artifacts" / "bundle"
    loaded = LoadedVersion("models:/shop/3", RowScorer.load(bundle), bundle, 1000)
    champion = NamedVersion("shop", "3", loaded)
    found = compared(shop, versions[0], champion)
    assert "Task buy of models:/shop/3 was trained on label '`buy`' in all rows" in found.remarks[0]
    assert found.tasks[1].rows == found.tasks[0].positives  # as the candidate defines it

    tasks[2] = {"name": "spent", "label": "click"}
    bundle = shop.bundle(tmp_path / "b", shop.state(), shop.configured(tasks=tasks))
    loaded = LoadedVersion("models:/shop/4", RowScorer.load(bundle), bundle, 1000)
    with pytest.raises(VersionError, match="'spent' is binary in one of"):
        compared(shop, versions[0], NamedVersion("shop", "4", loaded))


def test_bad_rows_are_named_with_their_place(shop, versions, tmp_path):
    rows = pq.read_table(shop.folder / "logs/dt=2026-11-01/a.parquet")
    clicks = rows["click"].to_pylist()
    clicks[450] = 7
    place = rows.schema.get_field_index("click")
    pq.write_table(
        rows.set_column(place, "click", pa.array(clicks, pa.int8())),
        tmp_path / "bad.parquet",
        row_group_size=300,
    )
    place = r"bad.parquet: row group 1: column 'click', row 150: holds 7; .*data.faults.labels"
    with pytest.raises(DatasetError, match=place):
        compared(shop, *versions, rows={"files": str(tmp_path / "bad.parquet")})
    pq.write_table(rows.drop_columns(["price"]), tmp_path / "bad.parquet")
    with pytest.raises(DatasetError, match=r"bad.parquet: has no column 'price'"):
        compared(shop, *versions, rows={"files": str(tmp_path / "bad.parquet")})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DatasetError, match=r"bad.parquet: cannot be opened"):
        compared(shop, *versions, rows={"files": str(tmp_path / "bad.parquet")})


@pytest.fixture
def logs(shop, tmp_path):
    """(good rows, file with three bad labels in its second row group, file as it should be)."""
    source = shop.folder / "logs/dt=2026-11-01/a.parquet"
    bad, good = tmp_path / "bad.parquet", tmp_path / "good.parquet"
    shutil.copy(source, bad)
    shutil.copy(source, good)
    rewrite(bad, replace("click", {310: 7, 450: None}))
    rewrite(bad, replace("spent", {450: float("nan"), 599: float("inf")}))
    rows = pq.read_table(source)
    usable = np.delete(np.arange(rows.num_rows), [310, 450, 599])
    return pa.concat_tables([rows.take(usable), rows]), bad, good


def test_rows_with_bad_labels_are_skipped_counted_and_shown(shop, versions, logs, tmp_path):
    usable, bad, _ = logs
    faults = {"labels": "skip_row", "max_lost_fraction": 0.01}
    files = {"files": str(tmp_path / "*.parquet")}
    found = compared(shop, versions[1], versions[0], faults, rows=files)
    assert found.rows == usable.num_rows == 1397
    click, scores = usable["click"].to_numpy(), scores_of(versions[1], usable)[:, 0]
    auc = roc_auc_score(click, scores)
    assert found.tasks[0].candidate["auc"] == pytest.approx(auc, abs=1e-9)
    assert (found.tasks[0].rows, found.tasks[2].rows) == (1397, 1397)
    (loss,) = found.losses
    assert loss == Loss("promotion.rows", str(bad), 1, "labels", 3, loss.reason)
    assert loss.reason.startswith("column 'click', row 10: holds 7; ")
    assert found.remarks[0].startswith("3 of 1,400 rows could not be used (labels 3)")

    tags = evidence_tags(found, [], "place")
    assert (tags["promotion.rows"], tags["promotion.rows_lost"]) == ("1397", "3")
    assert evidence_tree(found, [])["comparison"]["losses"][0]["rows"] == 3
    page = evidence_page(found, [], "interval", "").html()
    assert "Rows that could not be used" in page
    assert "column &#x27;click&#x27;, row 10" in page

    faults["max_lost_fraction"] = 0.002
    words = r"promotion.rows, all rows: 3 of 1,400 rows \(0.21%\) .*max_lost_fraction \(0.002\)"
    with pytest.raises(DatasetError, match=words):
        compared(shop, *versions, faults, rows=files)


def test_files_that_cannot_be_read_are_skipped_where_allowed(shop, versions, logs, tmp_path):
    _, bad, good = logs
    shutil.copy(good, bad)
    flip_page_header(bad, 1)
    files = {"files": str(tmp_path / "*.parquet")}
    damaged = r"bad.parquet: row group 1 cannot be decoded"
    with pytest.raises(DatasetError, match=damaged):
        compared(shop, *versions, rows=files)
    faults = {"unreadable": "skip_row_group", "max_lost_fraction": 0.5}
    found = compared(shop, *versions, faults, rows=files)
    assert found.rows == 1100
    assert [(loss.row_group, loss.kind, loss.rows) for loss in found.losses] == [
        (1, "unreadable", 300)
    ]

    # A column that is absent, and one of another type, in one of the files.
    for change in (
        lambda rows: rows.drop_columns(["price"]),
        lambda rows: rows.drop_columns(["price"]).append_column("price", [["dear"] * 700]),
    ):
        shutil.copy(good, bad)
        rewrite(bad, change)
        with pytest.raises(DatasetError, match=r"bad.parquet: .*column 'price'"):
            compared(shop, *versions, faults, rows=files)
        drift = {"schema_drift": "skip_row_group", "max_lost_fraction": 0.5}
        found = compared(shop, *versions, drift, rows=files)
        assert found.rows == 700
        assert [(loss.row_group, loss.kind, loss.rows) for loss in found.losses] == [
            (0, "schema_drift", 300),
            (1, "schema_drift", 300),
            (2, "schema_drift", 100),
        ]

    # Of a file without a footer nobody knows how many rows are lost.
    bad.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"bad.parquet: cannot be opened .*restore the file"):
        compared(shop, *versions, faults, rows=files)


def test_a_split_is_what_its_manifest_says(shop, versions, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shop.folder / "data", data)
    (shard,) = (data / "test").glob("*.parquet")
    rewritten = pq.read_table(shard).slice(0, 5990)
    pq.write_table(rewritten, shard)
    with pytest.raises(DatasetError, match=r"row group 0 has 5990 rows, the manifest says 2048"):
        compared(shop, *versions, data=data)
    shard.unlink()
    faults = {"unreadable": "skip_row_group", "max_lost_fraction": 0.5}
    with pytest.raises(DatasetError, match=r"6,000 of 6,000 rows \(100.00%\)"):
        compared(shop, *versions, faults, data=data)
