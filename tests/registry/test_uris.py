"""Tracking URIs: defaults, masking, and an answer within seconds when nobody is there."""

import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.registry.tracking import Tracker
from pipeline.registry.uris import TrackingError, check_reachable, mask, tracking_uri


@contextmanager
def listener():
    """A TCP port that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def web_server(status):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.seen = self.path
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_default_is_sqlite_under_storage_path(shop, tmp_path, monkeypatch):
    assert tracking_uri(shop()) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(shop(storage={"path": "here"})) == f"sqlite:///{Path.cwd()}/here/mlflow.db"
    configured = shop(mlflow={"tracking_uri": "http://host:5000"})
    assert tracking_uri(configured) == "http://host:5000"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pass@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://u:p@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("http://token@host", "http://***@host"),
        ("http://host/a@b", "http://host/a@b"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("see s3://k:s@b/c and http://u:v@w", "see s3://***@b/c and http://***@w"),
    ],
)
def test_mask(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_nobody_there(shop, shop_manifest, scheme):
    uri = f"{scheme}://me:secret@127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        Tracker.start(shop(mlflow={"tracking_uri": uri}), shop_manifest)
    assert time.monotonic() - started < 5
    assert mask(uri) in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "mlflow.tracking_uri" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_never_answers():
    with listener() as port:
        started = time.monotonic()
        with pytest.raises(TrackingError, match="no answer within 4 s"):
            check_reachable(f"http://127.0.0.1:{port}")
        assert time.monotonic() - started < 10


def test_a_server_in_trouble_is_reported_with_its_status():
    with web_server(503) as server, pytest.raises(TrackingError, match="/health says HTTP 503"):
        check_reachable(f"http://127.0.0.1:{server.server_port}")


def test_a_proxy_that_hides_health_is_good_enough():
    with web_server(404) as server:
        check_reachable(f"http://me:secret@127.0.0.1:{server.server_port}/mlflow/")
        assert server.seen == "/mlflow/health"


def test_stores_without_a_host_are_not_asked():
    check_reachable("sqlite:////tmp/none.db")
    check_reachable("databricks://profile")


@pytest.mark.parametrize("uri", ["file:/tmp/mlruns", "ftp://nowhere"])
def test_a_store_mlflow_refuses_is_named(shop, shop_manifest, uri):
    with pytest.raises(TrackingError, match=rf"MLflow at {uri} refused.*check mlflow.tracking_uri"):
        Tracker.start(shop(mlflow={"tracking_uri": uri}), shop_manifest)


def test_a_storage_path_that_cannot_be_made(shop, shop_manifest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"refused to open a run in experiment 'shop'"):
        Tracker.start(shop(storage={"path": str(tmp_path / "file" / "runs")}), shop_manifest)
