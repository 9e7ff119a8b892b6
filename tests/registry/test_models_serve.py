"""`mlflow models serve` on the artifact as it is: a client needs mlflow, torch and the folder."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model

from pipeline.registry.bundle import save_pyfunc
from pipeline.registry.fresh_scores import ABSENT

ROWS = [
    {"user": "u3", "item": 7, "tags": [1, 2], "words": ["w1"], "relevance": [0.5], "price": 1},
    {"user": None, "item": 10**15, "tags": [], "words": None, "relevance": None, "price": None},
]
# Imports of these fail in every process that has the folder on its path.
BLOCKED = "import sys; sys.modules.update(dict.fromkeys({names!r}))\n"


@pytest.fixture
def address(trained, tmp_path):
    folder = save_pyfunc(tmp_path, Model(), trained.trained(), trained.raw_rows(2, 7).to_pandas())
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCKED.format(names=ABSENT))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for uvicorn
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(blocked)}
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_for(uri, process, log)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def wait_for(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{uri}/ping", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"mlflow models serve did not start:\n{log.read_text()[-3000:]}")


def ask(uri: str, payload: object) -> object:
    request = urllib.request.Request(
        f"{uri}/invocations",
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_rows_over_http_score_as_in_the_process(address, trained):
    answer = ask(address, {"dataframe_records": ROWS})
    assert isinstance(answer, dict)
    got = pd.DataFrame(answer["predictions"]).to_numpy()
    expected = trained.scorer.score_frame(pd.DataFrame(ROWS)).to_numpy()
    np.testing.assert_allclose(got, expected, atol=1e-7)
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(address, {"dataframe_records": [{"tags": ["not", "numbers"]}]})
    assert error.value.code == 400
    assert "tags" in error.value.read().decode()
