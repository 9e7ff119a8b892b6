import os
import signal
import socket
import threading

import pytest

from jobs.serve import main
from pipeline.benchmark.served_model import DEMO
from pipeline.config import ConfigError
from pipeline.config.schema import RayConfig
from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.registry.uris import TrackingError
from pipeline.serving.launch import _set_by_signals, running_service, served_models
from pipeline.serving.versions import without_paths

CHAMPION = ServedModelConfig(name="champion", uri="models:/demo@champion", traffic=1.0)


def test_the_champion_alone_is_the_default():
    assert served_models(ServingConfig(), "demo") == [CHAMPION]
    other = CHAMPION.model_copy(update={"name": "x"})
    assert served_models(ServingConfig(models=[other]), "demo") == [other]


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
