"""From a run to a champion against a real `mlflow server` that keeps everything in PostgreSQL."""

import math
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow_server import mlflow_server

from pipeline.config.promotion import PromotionConfig
from pipeline.promotion.aliases import promote
from pipeline.promotion.lock import LockError, promotion_lock
from pipeline.registry.client import score_rows
from pipeline.registry.tracking import Tracker

pytestmark = pytest.mark.slow

LOSSES = [1.0, 0.5, math.nan, 0.125, math.inf]
LARGEST = 1.7976931348623157e308  # what MLflow keeps for infinity


def binaries() -> Path:
    """Folder of Debian's newest PostgreSQL, or of the one on PATH; skips without either."""
    debian = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if debian:
        return max(debian, key=lambda folder: float(folder.parent.name))
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("no PostgreSQL here: no initdb under /usr/lib/postgresql nor on PATH")
    return Path(found).resolve().parent


def driver() -> str:
    """Of the compose file: where it names none, SQLAlchemy takes one that is not installed."""
    compose = Path(__file__).parents[2] / "docker" / "compose.yaml"
    services = yaml.safe_load(compose.read_text())["services"]
    uri: str = services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    return uri.partition("://")[0]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """URI of an empty database of a PostgreSQL of its own, on loopback, with a password."""
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    programs = binaries()
    # PostgreSQL refuses to run as root, and nobody else gets into pytest's folders.
    account: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    password = secrets.token_hex(8)
    (folder / "password").write_text(password)
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for path in (folder, folder / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    initialise = [programs / "initdb", "-D", folder / "data", "--username", "mlflow", "--no-sync"]
    initialise += ["--auth", "scram-sha-256", "--pwfile", folder / "password", "--no-locale"]
    run = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port)]
    run += ["-k", folder, "-c", "fsync=off"]
    log = folder / "log"
    with log.open("w") as output:
        place = {"cwd": folder, "stdout": output, "stderr": output}
        subprocess.run([*map(str, initialise)], check=True, **place, **account)
        server = subprocess.Popen([*map(str, run)], **place, **account)
        access = f"mlflow:{password}@127.0.0.1:{port}/postgres"
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    psycopg2.connect(f"postgresql://{access}").close()
                    break
                except psycopg2.OperationalError:
                    assert server.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
            yield f"{driver()}://{access}"
        finally:
            server.terminate()
            server.wait(timeout=20)
            shutil.rmtree(folder)


def test_from_a_run_to_a_champion(database, trained, tmp_path):
    with mlflow_server(tmp_path, database) as server:
        sections = {"storage": {"path": str(tmp_path / "runs")}}
        experiment = trained.configured(mlflow={"tracking_uri": server.uri}, **sections)
        with Tracker.start(experiment, trained.manifest) as tracker:
            for step, loss in enumerate(LOSSES):
                tracker.log_metrics({"train/loss": loss}, step)
            first = trained.register(tracker, experiment)
        with Tracker.start(experiment, trained.manifest) as other:
            second = trained.register(other, experiment)
        client = MlflowClient(server.uri, server.uri)

        # The series, each point once, whatever is sent again.
        series = client.get_metric_history(tracker.run_id, "train/loss")
        client.log_batch(
            tracker.run_id, [Metric(m.key, m.value, m.timestamp, m.step) for m in series[:2]]
        )
        series = client.get_metric_history(tracker.run_id, "train/loss")
        series.sort(key=lambda point: point.step)
        assert [point.step for point in series] == [0, 1, 2, 3, 4]
        assert [p.value for p in series] == pytest.approx([*LOSSES[:4], LARGEST], nan_ok=True)
        run = client.get_run(tracker.run_id)
        assert run.info.status == "FINISHED"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert run.inputs.dataset_inputs[0].dataset.digest == trained.manifest.digest[:36]

        # Promotion, and the lock that is a name only one can have.
        rules, name = PromotionConfig(), first.name
        promote(client, name, first.version, None, rules, {"promotion.rows": "10"})
        promote(client, name, second.version, first.version, rules, {"promotion.rows": "20"})
        with promotion_lock(client, name, "test"), pytest.raises(LockError, match="holds the lock"):
            promote(client, name, first.version, second.version, rules, {})
        aliases = client.get_registered_model(name).aliases
        assert {alias: str(version) for alias, version in aliases.items()} == {
            "candidate": second.version,
            "champion": second.version,
            "previous": first.version,
        }
        version = client.get_model_version(name, second.version)
        assert version.tags["promotion.rows"] == "20"
        assert version.tags["promotion.replaced"] == first.version
        assert version.run_id == other.run_id
        with pytest.raises(MlflowException):
            client.get_registered_model(f"{name}.promotion-lock")

        # The artifact, by its alias, through the server.
        rows = trained.raw_rows(20, 5).to_pandas()
        scores = score_rows(experiment, f"models:/{name}@champion", rows)
        pd.testing.assert_frame_equal(scores, trained.scorer.score_frame(rows))
