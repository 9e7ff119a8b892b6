"""The job end to end on a SQLite store: first promotion, rejection, dry run, rollback."""

import json
import shutil

import pytest
import yaml
from mlflow.tracking import MlflowClient

from jobs.promote import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry(shop, new_store, tmp_path_factory):
    """(client, config) with a fitted version 1, one like it, and one that was never trained."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(new_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri, uri)
    client.create_experiment("shop", artifact_location=(folder / "artifacts").as_uri())
    for state in (shop.state(), shop.state(0.01), shop.fresh):
        shop.register(client, folder / "built", state)
    rules = {"max_auc_drop": 0.01, "max_calibration_error": 0.1, "max_p99_ms": None}
    rules |= {"replicates": 100, "latency_calls": 3}
    tree = shop.tree(
        mlflow={"tracking_uri": uri}, promotion=rules, evaluation={"slices": ["device"]}
    )
    (folder / "shop.yaml").write_text(yaml.safe_dump(tree))
    return client, str(folder / "shop.yaml")


def aliases(client):
    return {k: str(v) for k, v in client.get_registered_model("shop").aliases.items()}


def test_versions_come_and_go(registry, tmp_path, capsys):
    client, config = registry
    summary = tmp_path / "s.json"
    first = ["--config", config, "--version", "1", "--summary", str(summary)]
    assert main([*first, "--dry-run"]) == 0
    assert aliases(client) == {}
    assert client.get_model_version("shop", "1").tags == {}
    assert json.loads(summary.read_text())["promoted"] is False

    assert main(first) == 0
    assert aliases(client) == {"champion": "1"}
    assert json.loads(summary.read_text())["promoted"] is True
    assert main(first) == 1
    assert "version 1 is @champion already" in capsys.readouterr().err

    assert main(["--config", config, "--version", "2"]) == 0
    assert aliases(client) == {"champion": "2", "previous": "1"}
    version = client.get_model_version("shop", "2")
    assert version.tags["promotion.verdict"] == "passed"
    assert version.tags["promotion.compared_with"] == "1"
    assert version.tags["promotion.replaced"] == "1"
    assert version.tags["promotion.rows_lost"] == "0"
    assert version.tags["promotion.auc_difference.click"].startswith(("+0.000", "-0.000"))
    place = version.tags["promotion.evidence"]
    files = {f.path for f in client.list_artifacts(version.run_id, place)}
    assert files == {f"{place}/evidence.json", f"{place}/evidence.html"}
    local = client.download_artifacts(version.run_id, f"{place}/evidence.json", str(tmp_path))
    with open(local) as file:
        evidence = json.load(file)
    assert evidence["passed"] is True
    assert evidence["comparison"]["champion"]["version"] == "1"
    assert {rule["rule"] for rule in evidence["rules"]} >= {"max_auc_drop", "max_size_ratio"}

    # A version that fails stays where it is, with the reasons on it.
    capsys.readouterr()
    assert main(["--config", config, "--version", "3", "--summary", str(summary)]) == 1
    assert aliases(client) == {"champion": "2", "previous": "1"}
    said = capsys.readouterr().err
    assert "models:/shop/3 fails" in said
    assert "max_auc_drop, click: -0." in said
    tags = client.get_model_version("shop", "3").tags
    assert tags["promotion.verdict"] == "rejected"
    assert "max_auc_drop (click)" in tags["promotion.failed_rules"]
    assert "promotion.promoted" not in tags
    assert json.loads(summary.read_text())["passed"] is False

    assert main(["--config", config, "--rollback"]) == 0
    assert "@champion is version 1 again, 2 is withdrawn" in capsys.readouterr().out
    assert aliases(client) == {"champion": "1"}
    assert main(["--config", config, "--rollback"]) == 1
    assert "there is no @previous" in capsys.readouterr().err
    assert aliases(client) == {"champion": "1"}


def test_what_cannot_be_judged_is_refused(registry, capsys):
    client, config = registry
    before = aliases(client)
    for arguments, words in [
        (["--version", "9"], "has no version 9"),
        (["--version", "3", "promotion.tasks.like.min_auc=0.6"], "has no such task"),
        (["--version", "3", "--model", "absent"], "absent has no version 3"),
        (
            ["--version", "3", "promotion.rows.files=absent.parquet"],
            "promotion.rows.files: nothing",
        ),
        (["--version", "3", "promotion.resample_by=price"], "columns of integers or strings"),
        (["--version", "3", "mlflow.tracking_uri=http://127.0.0.1:9"], "does not answer"),
    ]:
        assert main(["--config", config, *arguments]) == 1
        assert words in capsys.readouterr().err
    for arguments in ([], ["--version", "3", "--rollback"], ["--rollback", "--dry-run"]):
        with pytest.raises(SystemExit):
            main(["--config", config, *arguments])
    assert aliases(client) == before
