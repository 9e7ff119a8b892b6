import json
import os
import signal
import socket
import threading
import urllib.request

import numpy as np
import psutil
import pytest

from jobs.serve import main
from pipeline.benchmark.served_model import DEMO
from pipeline.config import ConfigError
from pipeline.config.schema import RayConfig
from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.registry.uris import TrackingError
from pipeline.serving.app import ServiceArguments, build
from pipeline.serving.deployment import application
from pipeline.serving.http import REQUESTS_AT_ONCE
from pipeline.serving.launch import (
    _port_kept,
    _set_by_signals,
    listens_directly,
    running_service,
    served_models,
)
from pipeline.serving.versions import without_paths

CHAMPION = ServedModelConfig(name="champion", uri="models:/demo@champion", traffic=1.0)


def test_the_champion_alone_is_the_default():
    assert served_models(ServingConfig(), "demo") == [CHAMPION]
    other = CHAMPION.model_copy(update={"name": "x"})
    assert served_models(ServingConfig(models=[other]), "demo") == [other]


def test_replicas_listen_themselves_where_ray_starts_here():
    here, joined = RayConfig(), RayConfig(address="auto")
    assert listens_directly(ServingConfig(), here)
    assert not listens_directly(ServingConfig(), joined)
    assert listens_directly(ServingConfig(ingress="direct"), here)
    assert not listens_directly(ServingConfig(ingress="proxy"), here)
    assert not listens_directly(ServingConfig(ingress="proxy"), joined)
    start = running_service(ServingConfig(ingress="direct"), [CHAMPION], "http://x", joined)
    with pytest.raises(
        ConfigError, match=r"serving\.ingress: direct .* use serving\.ingress=proxy"
    ):
        start.__enter__()


def test_one_service_has_a_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        config = ServingConfig(port=probe.getsockname()[1])
        with pytest.raises(ConfigError, match=r"serving\.port: 127.0.0.1:\d+ cannot be bound"):
            _port_kept(config, RayConfig()).__enter__()
    second = _port_kept(config.model_copy(update={"host": "0.0.0.0"}), RayConfig())
    with (
        _port_kept(config, RayConfig()),  # its replicas do not listen yet
        pytest.raises(ConfigError, match=r"serving\.port: another service .* choose another port"),
    ):
        second.__enter__()
    with _port_kept(config, RayConfig()), _port_kept(config, RayConfig(address="auto")):
        pass


def test_ray_serve_takes_as_many_requests_as_a_replica_and_waits_longer_for_it():
    config = ServingConfig(shutdown_seconds=7)
    found = application(config, [CHAMPION], "http://x", direct=False)._bound_deployment
    assert found.max_ongoing_requests == found.max_queued_requests == REQUESTS_AT_ONCE
    assert found._deployment_config.graceful_shutdown_timeout_s > 7 + 1


def test_proxies_serve_what_ray_serve_deploys():
    args = {"tracking_uri": "http://x", "model": "models:/demo@champion"}
    with pytest.raises(ConfigError, match=r"serving\.ingress: requests come by Ray Serve's prox"):
        build(ServiceArguments.model_validate(args | {"serving": {"ingress": "direct"}}))
    deployment = build(ServiceArguments.model_validate(args))._bound_deployment
    assert deployment.init_args[-1] is False


@pytest.mark.slow
def test_faults_show_before_ray_starts(versions):
    uri = versions.registry.tracking_uri
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServingConfig(port=taken.getsockname()[1])
        start = running_service(config, [CHAMPION], uri, RayConfig())
        with (
            pytest.raises(ConfigError, match=r"serving.port: 127.0.0.1:\d+ cannot be bound"),
            start,
        ):
            pass
    absent = CHAMPION.model_copy(update={"uri": "models:/demo@nobody"})
    start = running_service(ServingConfig(), [absent], uri, RayConfig())
    with pytest.raises(TrackingError, match="refused to give models:/demo@nobody"), start:
        pass


@pytest.mark.slow
def test_proxies_pass_requests_on(versions):
    """As in a joined cluster, and wherever Ray Serve's own config starts the application."""
    versions.move_champion("1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        config = ServingConfig(port=probe.getsockname()[1], ingress="proxy")
    rows = versions.registry.rows(300)
    body = json.dumps({"rows": rows.to_pylist()}).encode()
    sent = {"content-type": "application/json"}
    with running_service(
        config, [CHAMPION], versions.registry.tracking_uri, RayConfig()
    ) as service:
        request = urllib.request.Request(f"{service.url}/score", body, sent)
        with urllib.request.urlopen(request, timeout=60) as answer:
            scores = json.loads(answer.read())["scores"]
        replicas = [
            process.info["nice"]
            for process in psutil.process_iter(["cmdline", "nice"])
            if "ServeReplica" in " ".join(process.info["cmdline"] or ())
            and psutil.Process() in process.parents()
        ]
        assert replicas == [psutil.Process().nice()]
        with urllib.request.urlopen(f"{service.url}/metrics", timeout=60) as answer:
            assert b"ple_serving_rows_total" in answer.read()
    found_BT = np.array([scores[task] for task in ("click", "convert", "like")]).T
    wanted_BT = versions.scorers["1"].score_table(rows)
    np.testing.assert_allclose(found_BT, wanted_BT, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --config FILE, or --model URI"),
        (["--config", "x.yaml", "--model", "models:/a/1"], "give --config FILE, or --model URI"),
        (["--model", "models:/a/1"], "--model and --tracking-uri go together"),
        (["--config", str(DEMO), "serving.port=0"], "serving.port"),
    ],
)
def test_the_command_line_is_checked(arguments, says, capsys):
    assert main(arguments) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("models:/demo/3: no file '/home/me/x y'", "models:/demo/3: no file '[...] y'"),
        ("MLflow at sqlite:////home/me/mlflow.db refused", "MLflow at [...] refused"),
        ("MLflow at http://user:pw@host:1/p failed", "MLflow at [...] failed"),
        ("s3://bucket/key, /tmp/a;\nsecond line", "[...], [...]; second line"),
        ("9 / 3 is 3", "9 / 3 is 3"),
    ],
)
def test_messages_for_strangers_hold_no_paths(text, shown):
    assert without_paths(text) == shown


def test_a_signal_while_the_service_starts_is_kept() -> None:
    stopped, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    with _set_by_signals(stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before
