"""The job on three days of files, against scikit-learn on the versions' own scores."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from damage import replace, rewrite
from mlflow.tracking import MlflowClient
from sklearn.metrics import log_loss, roc_auc_score
from small_versions import DAYS

from jobs.evaluate import main
from pipeline.registry.scorer import RowScorer

pytestmark = pytest.mark.slow
VERSIONS = ("models:/shop/1", "models:/shop/2")


@pytest.fixture(scope="module")
def registry(shop, tmp_path_factory):
    """(folder, URI, states) of a store with two versions and alias ``champion``."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri, uri)
    client.create_experiment("shop", artifact_location=(folder / "artifacts").as_uri())
    states = [shop.state(), shop.state(0.4)]
    for state in states:
        shop.register(client, folder / "built", state)
    client.set_registered_model_alias("shop", "champion", "1")
    return folder, uri, states


@pytest.fixture(scope="module")
def config(shop, registry):
    """Writes the config of a backtest."""
    folder, uri, _ = registry

    def write(**backtest):
        tree = shop.tree(mlflow={"tracking_uri": uri}, backtest=backtest)
        (folder / "shop.yaml").write_text(yaml.safe_dump(tree))
        return str(folder / "shop.yaml")

    return write


@pytest.fixture(scope="module")
def by_date(shop, registry, config, tmp_path_factory):
    """Summary and page of a backtest of both versions on the files of three days."""
    output = tmp_path_factory.mktemp("output")
    logs = {"files": str(shop.folder / "logs/dt={date}")}
    path = config(rows=logs | {"first_date": DAYS[0], "last_date": DAYS[2]})
    arguments = ["--config", path, "--model", "models:/shop@champion", "--model", VERSIONS[1]]
    summary = output / "summary.json"
    assert main([*arguments, "--output", str(output), "--summary", str(summary)]) == 0
    return json.loads(summary.read_text()), (output / "backtest.html").read_text()


def test_metrics_of_every_day_and_version(by_date, shop, registry, tmp_path):
    summary, _ = by_date
    assert summary["versions"] == list(VERSIONS)
    assert [day["day"] for day in summary["days"]] == list(DAYS)
    for number, state in enumerate(registry[2]):
        scorer = RowScorer.load(shop.bundle(tmp_path / str(number), state))
        for day in summary["days"]:
            rows = pq.read_table(shop.folder / f"logs/dt={day['day']}", partitioning=None)
            scores, click = scorer.score_table(rows), rows["click"].to_numpy()
            found = day["metrics"][VERSIONS[number]]
            assert (day["rows"], found["click"]["rows"]) == (1500, 1500)
            assert found["click"]["positives"] == click.sum()
            expected = roc_auc_score(click, scores[:, 0])
            assert found["click"]["auc"] == pytest.approx(expected, abs=1e-9)
            assert found["click"]["logloss"] == pytest.approx(log_loss(click, scores[:, 0]))
            mean = scores[:, 0].sum() / click.sum()
            assert found["click"]["calibration"] == pytest.approx(mean)
            buy = rows["buy"].to_numpy()[click == 1]
            expected = roc_auc_score(buy, scores[click == 1, 1])
            assert found["buy"]["auc"] == pytest.approx(expected, abs=1e-9)


def test_prices_that_moved_are_found(by_date):
    summary, page = by_date
    drift = [{d["name"]: d for d in day["drift"][VERSIONS[0]]} for day in summary["days"]]
    assert set(drift[0]) == {"user", "device", "tags", "price"}
    assert [found["price"]["verdict"] for found in drift] == ["stable", "act", "act"]
    assert all(found["device"]["verdict"] == "stable" for found in drift)
    # A normal number that moves by d has a PSI of d² before it is cut into bins.
    assert drift[1]["price"]["psi"] == pytest.approx(0.7**2, rel=0.3)
    assert f"price (PSI {drift[2]['price']['psi']:.2f} on {DAYS[2]}) is far from training" in page


def test_the_page_needs_nothing_else(by_date):
    _, page = by_date
    assert page.count("data:image/png;base64,") == 6  # AUC, log loss, calibration, RMSE, 2 drifts
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "Make this page again" in page


def test_a_run_keeps_the_curves(by_date, registry):
    _, uri, _ = registry
    client = MlflowClient(uri, uri)
    place = client.get_experiment_by_name("shop").experiment_id
    run = client.search_runs([place], "tags.mlflow.runName = 'backtest'")[0]
    curve = client.get_metric_history(run.info.run_id, "shop/1/click/auc")
    expected = [day["metrics"][VERSIONS[0]]["click"]["auc"] for day in by_date[0]["days"]]
    assert [m.value for m in sorted(curve, key=lambda m: m.step)] == expected
    assert len(client.get_metric_history(run.info.run_id, "shop/1/psi/price")) == 3
    names = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert names == {"backtest.html", "backtest.json"}
    assert run.info.status == "FINISHED"


def test_a_day_column_gives_the_same_days(by_date, shop, config, tmp_path, capsys):
    """All days in one file, in no order: as if every day had files of its own."""
    whole = pq.read_table(shop.folder / "logs", partitioning=None)
    order = np.random.default_rng(0).permutation(whole.num_rows)
    pq.write_table(whole.take(pa.array(order)), tmp_path / "all.parquet", row_group_size=700)
    path = config(rows={"files": str(tmp_path / "all.parquet")}, day_column="day")
    arguments = ["--config", path, "--model", VERSIONS[0], "--output", str(tmp_path)]
    summary = tmp_path / "s.json"
    assert main([*arguments, "--summary", str(summary), "mlflow.tracking_uri=null"]) == 1
    assert "MLflow" in capsys.readouterr().err  # the versions are in another store
    assert main([*arguments, "--summary", str(summary)]) == 0
    found = json.loads(summary.read_text())
    for mine, expected in zip(found["days"], by_date[0]["days"], strict=True):
        assert (mine["day"], mine["rows"]) == (expected["day"], expected["rows"])
        auc = mine["metrics"][VERSIONS[0]]["buy"]["auc"]
        assert auc == pytest.approx(expected["metrics"][VERSIONS[0]]["buy"]["auc"], abs=1e-12)
        assert mine["drift"][VERSIONS[0]] == expected["drift"][VERSIONS[0]]


def test_what_cannot_be_done_is_refused(config, registry, tmp_path, capsys):
    path = config(day_column="price")
    for model, words in [
        (["models:/shop/1"], "column 'price': "),
        (["models:/shop/7"], "refused to give models:/shop/7"),
        (["shop"], "write models:/NAME/VERSION"),
        (["models:/shop/1", "models:/shop@champion"], "asked for more than once"),
    ]:
        arguments = [word for uri in model for word in ("--model", uri)]
        assert main(["--config", path, *arguments, "--output", str(tmp_path)]) == 1
        assert words in capsys.readouterr().err
    assert main(["--config", path, "--model", "models:/shop/1", "backtest.act_psi=0.05"]) == 1
    assert "watch_psi must be below act_psi" in capsys.readouterr().err


def test_a_version_without_a_reference_says_so(shop, registry, config, tmp_path, capsys):
    _, uri, states = registry
    client = MlflowClient(uri, uri)
    built = shop.bundle(tmp_path / "m", states[0])
    (built / "artifacts/bundle/reference.json").unlink()
    run = client.create_run(client.get_experiment_by_name("shop").experiment_id)
    client.log_artifacts(run.info.run_id, str(built), "model")
    shutil.rmtree(built)
    source = f"{run.info.artifact_uri}/model"
    number = client.create_model_version("shop", source, run.info.run_id).version
    path = config(split="valid")
    model = f"models:/shop/{number}"
    assert main(["--config", path, "--model", model, "--output", str(tmp_path)]) == 0
    assert f"{model} has no reference.json" in capsys.readouterr().out


def test_bad_rows_are_lost_by_day(shop, config, tmp_path, capsys):
    logs = tmp_path / "logs"
    shutil.copytree(shop.folder / "logs", logs)
    rewrite(logs / f"dt={DAYS[1]}/a.parquet", replace("click", dict.fromkeys(range(290, 310), 7)))
    path = config(
        rows={"files": str(logs / "dt={date}"), "first_date": DAYS[0], "last_date": DAYS[2]}
    )
    summary = tmp_path / "s.json"
    arguments = ["--config", path, "--model", VERSIONS[0], "--output", str(tmp_path)]
    arguments += ["--summary", str(summary)]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "a.parquet: row group 0: column 'click', row 290: holds 7" in said
    # 20 of all 4,500 rows are few enough, 20 of that day's are not.
    skip = ["data.faults.labels=skip_row", "data.faults.max_lost_fraction=0.01"]
    assert main([*arguments, *skip]) == 1
    assert f"{DAYS[1]}: 20 of 1,500 rows (1.33%)" in capsys.readouterr().err
    skip[1] = "data.faults.max_lost_fraction=0.02"
    assert main([*arguments, *skip]) == 0
    assert "20 of 4,500 rows could not be used (labels 20)" in capsys.readouterr().out
    found = json.loads(summary.read_text())
    assert [(day["rows"], day["lost"]) for day in found["days"]] == [
        (1500, 0),
        (1480, 20),
        (1500, 0),
    ]
    assert [(loss["row_group"], loss["rows"]) for loss in found["losses"]] == [(0, 10), (1, 10)]
    assert "Rows that could not be used" in (tmp_path / "backtest.html").read_text()
