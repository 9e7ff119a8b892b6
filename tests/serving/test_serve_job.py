"""`jobs.serve` as a user starts it: one service on Ray Serve, shared by all tests of this file."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.benchmark.fuzz import resident_bytes, send
from pipeline.benchmark.load_generator import run_load
from pipeline.benchmark.malformed import MalformedRequests
from pipeline.benchmark.served_model import DEMO
from pipeline.config.serving import RequestLimitsConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# For versions to load, however busy the machine is.
PATIENT_SECONDS = 180


@dataclass
class Service:
    url: str
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        return self.call(urllib.request.Request(self.url + path))

    def score(self, rows, query="", key=None) -> tuple[int, dict]:
        headers = {"content-type": "application/json"} | ({"x-request-key": key} if key else {})
        body = json.dumps({"rows": rows}).encode()
        status, text = self.call(urllib.request.Request(f"{self.url}/score{query}", body, headers))
        return status, json.loads(text)

    def call(self, request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels, over both replicas."""
        lines = self.get("/metrics")[1].splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"ple_serving_{name}{{") and all(w in line for w in wanted)
        )

    def wait_until_champion_is(self, version: str) -> None:
        """Both replicas have it: any of them may answer, so many answers are looked at."""
        deadline = time.monotonic() + PATIENT_SECONDS
        while time.monotonic() < deadline:
            healths = [json.loads(self.get("/health")[1]) for _ in range(12)]
            if {h["models"]["champion"]["version"] for h in healths} == {version}:
                return
            time.sleep(0.1)
        pytest.fail(f"champion is not {version}: {healths}")


@pytest.fixture(scope="module")
def service(versions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    versions.move_champion("1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tree = yaml.safe_load(DEMO.read_text())
    tree["storage"] = {"path": str(versions.registry.folder / "runs")}
    tree["serving"] = {
        "port": port,
        "poll_seconds": 0.5,
        "choose_version": True,
        "replicas": 2,
        "models": [
            {"name": "champion", "uri": "models:/demo@champion", "traffic": 0.8},
            {"name": "challenger", "uri": "models:/demo/2", "traffic": 0.2},
            {"name": "shadow", "uri": "models:/demo/1", "shadow": 0.5},
        ],
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(tree))
    log = folder / "serve.log"
    command = [sys.executable, "-m", "jobs.serve", "--config", str(folder / "serve.yaml")]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            stdout=output,
            stderr=output,
            text=True,
        )
    running = Service(f"http://127.0.0.1:{port}", process, log)
    try:
        deadline = time.monotonic() + 240
        while "serving at" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"jobs.serve did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)


def test_scores_equal_those_of_the_scorer_whichever_version_is_asked(service, versions):
    assert service.get("/health")[0] == 200
    rows = versions.registry.rows(200)
    for name, version in (("champion", "1"), ("challenger", "2")):
        status, tree = service.score(rows.to_pylist(), f"?version={name}")
        assert status == 200
        assert (tree["name"], tree["model"], tree["version"]) == (name, "demo", version)
        found_BT = np.array([tree["scores"][task] for task in ("click", "convert", "like")]).T
        wanted_BT = versions.scorers[version].score_table(rows)
        np.testing.assert_allclose(found_BT, wanted_BT, rtol=1e-6, atol=1e-7)
    status, tree = service.score([{}], "?version=9")
    assert (status, tree["error"]["code"]) == (404, "unknown_version")


def test_traffic_is_split_by_key_and_shadowed(service):
    keys = [f"user-{n}" for n in range(120)]
    first, second = ([service.score([{}], key=key)[1]["name"] for key in keys] for _ in range(2))
    assert first == second
    assert 8 <= Counter(first)["challenger"] <= 42  # 120 · 0.2, four standard deviations
    assert "shadow" not in first
    scored = service.metric("shadow_requests_total", model="shadow", outcome="scored")
    assert scored > 40
    rows = service.metric("shadow_difference_count", model="shadow", task="click")
    assert rows >= scored
    answered = service.metric("requests_total", outcome="ok")
    assert answered == service.metric("request_seconds_count") >= 240
    text = service.get("/metrics")[1]
    assert len(set(re.findall(r'requests_total{.*replica="(\w+)"', text))) == 2


def test_malformed_requests_are_refused_with_a_reason(service, versions):
    drawn = MalformedRequests(versions.scorers["1"].schema, RequestLimitsConfig())
    # ?version= is free here, so a wrong name is 404 instead of 403: a 4xx as well.
    send(service.url, drawn.draw(300, seed=1))
    before = resident_bytes(service.url)
    result = send(service.url, drawn.draw(1000, seed=2))
    assert result.wrong == []
    assert sum(result.statuses.values()) >= 990
    assert resident_bytes(service.url) - before < 64 * 2**20
    assert service.score([{}])[0] == 200


def test_garbage_below_http_is_survived(service):
    host, port = service.url.removeprefix("http://").split(":")
    for garbage in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"POST /score HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    assert service.score([{}])[0] == 200


def test_the_champion_changes_under_load_without_a_failed_request(service, versions, tmp_path):
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"rows": versions.registry.rows(8).to_pylist()}))
    versions.move_champion("1")
    service.wait_until_champion_is("1")
    found = []

    def load() -> None:
        found.append(run_load(f"{service.url}/score?version=champion", body, 4, 12.0))

    clients = threading.Thread(target=load)
    clients.start()
    time.sleep(3)
    for version in ("2", "1", "2"):
        versions.move_champion(version)
        service.wait_until_champion_is(version)
    clients.join()
    assert set(found[0].statuses) == {"200"}, found
    assert set(found[0].versions) == {"1", "2"}
    assert service.metric("loads_total", model="champion", outcome="ok") >= 4


def test_a_version_that_does_not_load_leaves_the_old_one(service, versions):
    service.wait_until_champion_is("2")
    versions.move_champion(versions.broken)
    deadline = time.monotonic() + PATIENT_SECONDS
    while service.metric("load_failing", model="champion") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    status, text = service.get("/health")
    assert (status, json.loads(text)["status"]) == (200, "degraded")
    assert f"models:/demo/{versions.broken} cannot be served" in text
    assert str(versions.registry.folder) not in text
    assert service.score([{}], "?version=champion")[1]["version"] == "2"
    versions.move_champion("1")
    service.wait_until_champion_is("1")
    assert json.loads(service.get("/health")[1])["status"] == "ready"


def test_requests_in_flight_are_answered_at_shutdown(service, versions):
    """Last of this file: the service ends here."""
    rows = versions.registry.rows(1024).to_pylist() * 4
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(service.score(rows)[0])) for _ in range(6)
    ]
    before = service.metric("rows_total")
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while service.metric("rows_total") == before and time.monotonic() < deadline:
        time.sleep(0.01)
    service.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    assert service.process.wait(120) == 0
    log = service.log.read_text()
    assert "stopping: requests in flight are finished" in log
    assert "Traceback" not in log
