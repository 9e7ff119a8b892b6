"""From the record to MLflow: in order, none twice, whatever happens on the way."""

import json
import shutil
import socket
import subprocess
import sys
import time

import pytest
from flaky_proxy import flaky_proxy
from job_runner import ROOT, run_job
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from mlflow_server import mlflow_server

from pipeline.registry import delivery
from pipeline.registry.metric_record import MetricPoint, read_points
from pipeline.registry.outbox import Outbox
from pipeline.registry.redelivery import deliver_folder
from pipeline.registry.tracking import Tracker
from pipeline.registry.uris import TrackingError


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_store):
    with mlflow_server(tmp_path_factory.mktemp("server"), new_store) as running:
        yield running


def folder_of(tracker):
    return tracker._outbox.folder


def series(uri, run_id):
    """Every metric row the server has of a run, sorted as `recorded` is."""
    client = MlflowClient(tracking_uri=uri)
    rows = [
        MetricPoint(m.key, m.value, m.step, m.timestamp)
        for key in client.get_run(run_id).data.metrics
        for m in client.get_metric_history(run_id, key)
    ]
    return sorted(rows, key=lambda p: (p.key, p.step, p.timestamp))


def recorded(tracker):
    return sorted(read_points(folder_of(tracker)), key=lambda p: (p.key, p.step, p.timestamp))


def test_every_point_arrives_once(shop, shop_manifest):
    with Tracker.start(shop(), shop_manifest) as tracker:
        for step in range(2500):
            tracker.log_metrics({"train/loss": 1 / (step + 1)}, step)
    rows = series(tracker.run.tracking_uri, tracker.run_id)
    assert [(r.step, r.value) for r in rows] == [(s, 1 / (s + 1)) for s in range(2500)]
    assert rows == recorded(tracker)
    assert tracker.undelivered is None


def test_sending_all_again_adds_nothing(shop, shop_manifest):
    with Tracker.start(shop(), shop_manifest) as tracker:
        for step in range(1500):
            tracker.log_metrics({"train/loss": 1 / (step + 1), "nan": float("nan")}, step)
        tracker.set_tags({"a": "b"})
    uri = tracker.run.tracking_uri
    before = len(series(uri, tracker.run_id))
    (folder_of(tracker) / "outbox" / "delivered.json").unlink()
    assert deliver_folder(folder_of(tracker)).startswith(
        f"delivered to MLflow at {uri}: 3,000 metric values (steps 0 to 1,499), 1 tags, "
        "the status FINISHED"
    )
    assert len(series(uri, tracker.run_id)) == before == 3000
    assert deliver_folder(folder_of(tracker)).startswith("nothing to deliver")


def test_what_mlflow_refuses_is_set_aside_named_and_delivered_later(shop, shop_manifest):
    with Tracker.start(shop(), shop_manifest) as tracker:
        tracker.log_metrics({"x" * 300: 1.0}, 1)
        tracker.log_metrics({"train/loss": 0.5}, 1)
        tracker.log_dict({"a": 1}, "a.json")
    assert "1 metric values (steps 1 to 1) of run" in tracker.undelivered
    assert "250" in tracker.undelivered
    assert tracker.client.get_run(tracker.run_id).data.metrics == {"train/loss": 0.5}
    with pytest.raises(TrackingError, match="has not taken 1 metric values"):
        deliver_folder(folder_of(tracker))


def test_a_deleted_run_keeps_everything_until_it_is_restored(shop, shop_manifest):
    with Tracker.start(shop(), shop_manifest) as tracker:
        tracker.client.delete_run(tracker.run_id)
        tracker.log_metrics({"train/loss": 0.5}, 1)
        tracker.log_dict({"a": 1}, "more/a.json")
    assert "1 metric values (steps 1 to 1), the status FINISHED" in tracker.undelivered
    tracker.client.restore_run(tracker.run_id)
    deliver_folder(folder_of(tracker))
    assert series(tracker.run.tracking_uri, tracker.run_id) == recorded(tracker)
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_resumed_run_repeats_nothing(shop, shop_manifest):
    first = Tracker.start(shop(), shop_manifest)
    for step in range(30):
        first.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    first.finish("KILLED")
    assert first.client.get_run(first.run_id).info.status == "KILLED"
    second = Tracker.start(shop(), shop_manifest, resume_run_id=first.run_id)
    run = second.client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["resumed"]) == ("RUNNING", "1")
    for step in range(40):  # The history is posted again, by a clock that went on.
        second.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    second.finish()
    assert Tracker.start(shop(), shop_manifest, resume_run_id=first.run_id)._outbox.resumes == 2
    rows = series(first.run.tracking_uri, first.run_id)
    assert [(r.step, r.value) for r in rows] == [(s, 1.0 / (s + 1)) for s in range(40)]


def test_a_record_lost_with_its_machine_is_made_anew(shop, shop_manifest):
    with Tracker.start(shop(), shop_manifest) as first:
        for step in range(30):
            first.log_metrics({"train/loss": 1.0 / (step + 1), "epoch": 0.0}, step)
    before = recorded(first)
    shutil.rmtree(folder_of(first))
    with Tracker.start(shop(), shop_manifest, resume_run_id=first.run_id) as second:
        for step in range(40):
            second.log_metrics({"train/loss": 1.0 / (step + 1), "epoch": 0.0}, step)
    rows = series(first.run.tracking_uri, first.run_id)
    assert rows == recorded(second)
    assert [r for r in rows if r.step < 30] == before
    assert len(rows) == 80


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda client, run_id: "0" * 32, r"MLflow has no run '0{32}': correct the id"),
        (lambda client, run_id: "x/y", r"MLflow has no run 'x/y'"),
        (
            lambda client, run_id: client.delete_run(run_id) or run_id,
            r"is deleted: restore it with `mlflow runs restore --run-id",
        ),
    ],
)
def test_a_run_that_is_gone_cannot_be_resumed(shop, shop_manifest, prepare, message):
    with Tracker.start(shop(), shop_manifest) as tracker:
        pass
    run_id = prepare(tracker.client, tracker.run_id)
    with pytest.raises(TrackingError, match=message):
        Tracker.start(shop(), shop_manifest, resume_run_id=run_id)


def test_a_run_that_goes_on_elsewhere_cannot_be_resumed(shop, shop_manifest):
    tracker = Tracker.start(shop(), shop_manifest)
    with pytest.raises(TrackingError, match="in use: another process"):
        Tracker.start(shop(), shop_manifest, resume_run_id=tracker.run_id)


def test_mlflow_gone_at_the_end_hides_nothing_and_stops_nothing(shop, shop_manifest, monkeypatch):
    def gone(uri):
        raise TrackingError("MLflow does not answer")

    experiment = shop(mlflow={"delivery_timeout_seconds": 0.1})
    failed, finished = (Tracker.start(experiment, shop_manifest) for _ in range(2))
    monkeypatch.setattr(delivery, "check_reachable", gone)
    with pytest.raises(ZeroDivisionError) as caught, failed:
        raise ZeroDivisionError
    (note,) = caught.value.__notes__
    assert "has not taken the status FAILED of run" in note
    assert "(MLflow does not answer); kept in" in note
    with finished:
        finished.log_metrics({"train/loss": 0.5}, 1)
    assert "(steps 1 to 1), the status FINISHED of run" in finished.undelivered
    monkeypatch.undo()
    for tracker, status in ((failed, "FAILED"), (finished, "FINISHED")):
        assert deliver_folder(folder_of(tracker)).startswith("delivered")
        assert tracker.client.get_run(tracker.run_id).info.status == status


def test_a_server_that_accepts_and_never_answers_holds_nothing_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        box = Outbox(delivery.TrackedRun(uri, "1", "r1"), tmp_path / "r1")
        box.log_metrics({"train/loss": 0.5}, 1)
        assert not box.deliver(0.5)
        box.close()
        assert time.monotonic() - began < 4


def test_passwords_are_nowhere_in_the_folder(shop, shop_manifest, tmp_path):
    uri = "http://me:hunter2@127.0.0.1:9"
    box = Outbox(delivery.TrackedRun(uri, "1", "r1"), tmp_path / "r1")
    box.log_metrics({"train/loss": 0.5}, 1)
    assert not box.deliver(1.0)
    undelivered = box.undelivered()
    box.close()
    assert "hunter2" not in undelivered
    assert "`python -m jobs.deliver --config CONFIG r1`" in undelivered
    texts = [p.read_text() for p in (tmp_path / "r1").rglob("*") if p.is_file()]
    assert texts
    assert not any("hunter2" in text for text in texts)
    with pytest.raises(TrackingError, match=r"password .* is not kept there"):
        deliver_folder(tmp_path / "r1")


LOGGING_PROCESS = """
import sys, time
from pathlib import Path
from pipeline.registry import delivery
from pipeline.registry.outbox import Outbox
delivery._INTERVAL = 0.02
uri, experiment, run, folder = sys.argv[1:]
box = Outbox(delivery.TrackedRun(uri, experiment, run), Path(folder))
for step in range(1500):
    box.log_metrics({"train/loss": 1.0 / (step + 1), "epoch": 0.0}, step)
    time.sleep(0.001)
assert box.deliver(60.0)
box.close()
"""


@pytest.mark.slow
def test_a_process_killed_while_it_delivers_loses_and_repeats_nothing(new_store, tmp_path):
    shutil.copy(new_store, tmp_path / "mlflow.db")
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "run"
    client = MlflowClient(tracking_uri=uri)
    run_id = client.create_run(client.create_experiment("x")).info.run_id
    command = [sys.executable, "-c", LOGGING_PROCESS, uri, "1", run_id, str(folder)]
    for goal in (300, 700, 1200):
        process = subprocess.Popen(command, cwd=ROOT)
        while len(client.get_metric_history(run_id, "epoch")) < goal:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True)
    rows = series(uri, run_id)
    assert len(rows) == 3000
    assert rows == sorted(read_points(folder), key=lambda p: (p.key, p.step, p.timestamp))
    assert [r.value for r in rows[1500:]] == [1.0 / (step + 1) for step in range(1500)]


@pytest.mark.slow
def test_a_server_killed_twice_ends_up_with_the_record(server, shop, shop_manifest, monkeypatch):
    monkeypatch.setattr(delivery, "_INTERVAL", 0.2)
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE", 1.0)
    longest = 0.0
    with Tracker.start(shop(mlflow={"tracking_uri": server.uri}), shop_manifest) as tracker:
        for step in range(2000):
            began = time.monotonic()
            tracker.log_metrics({"train/loss": 1.0 / (step + 1), "epoch": step // 500}, step)
            if step % 400 == 0:
                tracker.log_dict({"step": step}, f"plans/{step}.json")
                tracker.set_tags({"latest": str(step)})
            longest = max(longest, time.monotonic() - began)
            if step in (500, 1200):
                server.kill()
            if step in (900, 1600):
                server.start(wait=False)
            time.sleep(0.005)
    assert tracker.undelivered is None
    rows = series(server.uri, tracker.run_id)
    assert len(rows) == 4000
    assert rows == recorded(tracker)
    run = tracker.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["latest"]) == ("FINISHED", "1600")
    plans = tracker.client.list_artifacts(tracker.run_id, "plans")
    assert len(plans) == 5
    assert longest < 0.5  # Writing waits for no server; the machine may be busy.


@pytest.mark.slow
def test_an_answer_that_was_lost_leaves_no_second_point(server, shop, shop_manifest, monkeypatch):
    monkeypatch.setattr(delivery, "_INTERVAL", 0.1)
    # MLflow's own second attempt is off: the one made here is to be seen.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with flaky_proxy(server.uri.removeprefix("http://")) as proxy:
        experiment = shop(mlflow={"tracking_uri": f"http://{proxy.address}"})
        with Tracker.start(experiment, shop_manifest) as tracker:
            proxy.cut(3, matching="^POST .*log-batch", share=0.0)
            proxy.cut(1, matching="^PUT .*artifacts", share=0.0)
            proxy.cut(1, matching="^POST .*runs/update", share=0.0)
            for step in range(300):
                tracker.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
                time.sleep(0.002)
            tracker.log_dict({"a": 1}, "a.json")
        assert len(proxy.failures) == 5
    rows = series(server.uri, tracker.run_id)
    assert len(rows) == 300
    assert rows == recorded(tracker)
    run = MlflowClient(tracking_uri=server.uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_artifacts_that_cannot_be_stored_hold_up_no_metrics(
    server, shop, shop_manifest, monkeypatch
):
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(delivery, "_HURRIED_PAUSE", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with flaky_proxy(server.uri.removeprefix("http://")) as proxy:
        experiment = shop(mlflow={"tracking_uri": f"http://{proxy.address}"})
        with Tracker.start(experiment, shop_manifest) as tracker:
            proxy.answer(500, times=1000, matching="^PUT .*artifacts")
            tracker.log_metrics({"train/loss": 0.5}, 1)
            tracker.log_dict({"a": 1}, "a.json")
            tracker.log_metrics({"train/loss": 0.4}, 2)
        run = tracker.client.get_run(tracker.run_id)
        assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 0.4})
        assert f"1 files (a.json) of run {tracker.run_id} (" in tracker.undelivered
        proxy.behave()
        deliver_folder(folder_of(tracker))
        files = {f.path for f in tracker.client.list_artifacts(tracker.run_id)}
        assert files == {"experiment.yaml", "a.json"}


@pytest.mark.slow
def test_a_server_gone_at_the_end_gets_it_all_by_the_command(
    server, shop, shop_manifest, run_command
):
    experiment = shop(mlflow={"tracking_uri": server.uri, "delivery_timeout_seconds": 2})
    figure = Figure()
    figure.add_subplot()
    with Tracker.start(experiment, shop_manifest) as tracker:
        server.kill()
        began = time.monotonic()
        tracker.log_metrics({"train/loss": 0.5, "epoch": 0.0}, 7)
        tracker.log_figure(figure, "figures/curves.png")
        tracker.log_dict({"a": 1}, "a.json")
        tracker.set_tags({"best_step": "7"})
        with pytest.raises(TrackingError, match="does not answer"):
            tracker.await_server()
    assert time.monotonic() - began < 12
    command = f"python -m jobs.deliver --run-folder {folder_of(tracker)}"
    assert tracker.undelivered.startswith(
        f"MLflow at {server.uri} has not taken 2 metric values (steps 7 to 7), 2 files "
        f"(figures/curves.png, a.json), 1 tags, the status FINISHED of run {tracker.run_id} ("
    )
    assert tracker.undelivered.endswith(f"delivered by `{command}`")

    away = run_command(command, check=False)
    assert away.returncode == 1
    assert away.stderr.startswith(f"error: MLflow at {server.uri} does not answer")
    server.start()
    assert run_command(command).stdout.startswith("delivered to MLflow at http")
    assert run_command(command).stdout.startswith("nothing to deliver: MLflow at http")
    assert series(server.uri, tracker.run_id) == recorded(tracker)
    run = tracker.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["best_step"]) == ("FINISHED", "7")
    ended = json.loads((folder_of(tracker) / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.info.end_time == ended["timestamp"]
    assert [f.path for f in tracker.client.list_artifacts(tracker.run_id, "figures")]
    assert not (folder_of(tracker) / "outbox" / "files").exists()


@pytest.fixture
def run_command():
    def run(command, check=True):
        return run_job(*command.removeprefix("python -m ").split(), check=check)

    return run
