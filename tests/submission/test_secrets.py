"""Secrets planted wherever a user may write one do not come out again in errors and configs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import train
from pipeline.config import load_experiment, resolved_yaml
from pipeline.config.locations import mask
from pipeline.registry.provenance import experiment_params
from pipeline.registry.uris import TrackingError, check_reachable

ROOT = Path(__file__).parents[2]
KEY, SECRET, PASSWORD = "AKIAPLANTED0000001", "planted%2FS3%2Bsecret", "planted-mlflow-pw"
STORE = f"s3://{KEY}:{SECRET}@ple-bucket/data?endpoint_override=127.0.0.1:9&scheme=http"
TRACKING = f"http://planted-user:{PASSWORD}@127.0.0.1:9"
PLANTED = (KEY, SECRET, "planted/S3+secret", PASSWORD, "planted-user")


def assert_clean(text: str) -> None:
    assert [secret for secret in PLANTED if secret in text] == []


@pytest.mark.parametrize(
    "overrides",
    [
        (f"data.path={STORE}", "data.faults.read_attempts=1"),
        (f"data.pth={STORE}",),
        (f"storage.path={STORE}", "data.path=/nowhere"),
        (f"mlflow.trackin_uri={TRACKING}",),
        (f"mlflow.tracking_uri={TRACKING}", "data.path=/nowhere"),
        (f"train.epochs={STORE}",),
        (f"data.splits={{train: '{STORE}'}}",),
        (f"{STORE}",),
    ],
)
def test_errors_of_a_job_hold_no_secret(
    overrides: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--config", str(ROOT / "configs/demo.yaml"), *overrides]) == 1
    said = capfd.readouterr()
    assert "error: " in said.err
    assert_clean(said.out + said.err)


def test_a_tracking_server_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(TrackingError, match=r"http://\*\*\*@127\.0\.0\.1:9") as raised:
        check_reachable(TRACKING)
    assert_clean(str(raised.value))


def test_what_mlflow_is_given_holds_no_secret() -> None:
    experiment = load_experiment(
        ROOT / "configs/demo.yaml",
        [f"data.path={STORE}", f"mlflow.tracking_uri={TRACKING}", "storage.path=/runs"],
    )
    assert_clean(str(experiment_params(experiment)))
    assert_clean(mask(resolved_yaml(experiment)))


def test_a_secret_in_a_config_file_is_not_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    tree["data"]["path"] = STORE
    tree["data"]["unknown"] = TRACKING
    config = tmp_path / "x.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert train.main(["--config", str(config)]) == 1
    assert_clean("".join(capfd.readouterr()))


@pytest.mark.slow
def test_preparing_from_a_store_that_refuses_names_it_without_its_key(tmp_path: Path) -> None:
    columns = ROOT / "configs/columns/ali_ccp.yaml"
    words = ["table", "--source", STORE, "--columns", str(columns), "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert_clean(done.stdout + done.stderr)
