"""Dockerfile, compose files and scripts, checked without an engine."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import submit
from pipeline.config import load_experiment
from pipeline.submission.words import command_on_cluster, known_jobs

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
COMPOSE = DOCKER / "compose.yaml"
# Names and lengths of what would be a secret if its value stood there.
SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|CREDENTIAL")


def run(*words: str, environment: Mapping[str, str] = os.environ) -> str:
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=dict(environment))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compose(folder: Path, *files: Path) -> dict[str, Any]:
    """The files merged and checked as podman-compose does; it asks podman only for a version."""
    stub = folder / "podman"
    stub.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    stub.chmod(0o755)
    words = [w for file in files for w in ("-f", str(file))]
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    text = run(
        str(BIN / "podman-compose"),
        "--profile",
        "demo",
        *words,
        "config",
        environment=os.environ | path,
    )
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = compose(tmp_path_factory.mktemp("bin"), COMPOSE)["services"]
    return found


def stages() -> dict[str, str]:
    """Stage → its instructions."""
    parts = re.split(r"^FROM .* AS (\S+)$", (DOCKER / "Dockerfile").read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_dockerfile_lints() -> None:
    run(str(BIN / "hadolint"), "--failure-threshold", "info", str(DOCKER / "Dockerfile"))


def test_yaml_lints() -> None:
    rules = {"line-length": {"max": 110}, "document-start": "disable"}
    settings = json.dumps({"extends": "default", "rules": rules})
    run(str(BIN / "yamllint"), "--strict", "-d", settings, str(DOCKER))


def test_scripts_parse() -> None:
    for script in sorted(DOCKER.glob("*.sh")):
        run("sh", "-n", str(script))


def test_final_images_run_without_rights_on_pinned_bases() -> None:
    found = stages()
    for name in ("cpu", "cuda", "mlflow"):
        assert "USER 1000:1000" in found[name]
        assert "pip install" not in found[name], "packages come from their own stage"
    assert "HEALTHCHECK" in found["project"]
    assert "HEALTHCHECK" in found["mlflow"]
    bases = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (DOCKER / "Dockerfile").read_text(), re.M)
    assert [bool(re.search(r":3\.11\.\d+-slim-bookworm$", base)) for base in bases] == [True]
    installs = re.findall(r"pip install.*", (DOCKER / "Dockerfile").read_text())
    assert len(installs) == 3
    assert all("--no-deps" in line for line in installs)


@pytest.mark.parametrize("stack", ["cpu", "cuda"])
def test_images_have_the_locked_packages_without_the_tools_of_development(stack: str) -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
        split = [line.partition(" ;")[0].partition("==") for line in lines]
        return {package: version for package, _, version in split}

    runtime, full = pins(f"{stack}-runtime"), pins(stack)
    assert runtime.items() <= full.items()
    assert {"torch", "torchrec", "ray", "mlflow", "boto3"} <= set(runtime)
    assert not {"pytest", "mypy", "ruff", "moto", "hypothesis"} & set(runtime)
    assert pins("server").items() <= pins("cpu").items()
    assert "psycopg2-binary" in pins("server")


def test_what_is_copied_is_let_through_by_dockerignore() -> None:
    let = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    text = (DOCKER / "Dockerfile").read_text()
    copied = [w for line in re.findall(r"^COPY (?!--from)(.*)", text, re.M) for w in line.split()]
    sources = {w for w in copied if not w.startswith(("-", "/", "./"))}
    for source in sources:
        kept = source if not source.startswith("requirements/") else "requirements/*.lock"
        assert kept in let, source
        assert (ROOT / source).exists(), source


def test_compose_merges_and_every_service_is_bounded_and_watched(
    services: dict[str, Any],
) -> None:
    nodes, stores = {"head", "worker-1", "worker-2"}, {"s3", "postgres", "mlflow"}
    assert set(services) == nodes | stores | {"bucket", "demo"}
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.fullmatch(r"[\d.]+[\w.-]*", tag), service["image"]
        if name in ("bucket", "demo"):
            assert service["healthcheck"] == {"disable": True}
            continue
        assert "memory" in service["deploy"]["resources"]["limits"], name
        built = "build" in service
        assert built or "healthcheck" in service, f"{name}: who watches it?"
        for dependency in service.get("depends_on", {}).values():
            assert dependency["condition"] != "service_started"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "open to this machine only"


def test_no_secret_stands_in_a_compose_file(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET_NAME.search(variable):
                assert value.startswith("/run/secrets/"), f"{name}: {variable}"
                assert value.rpartition("/")[2] in service["secrets"], f"{name}: {variable}"
            assert "@" not in value or re.search(r"//\w+@", value), f"{name}: {variable}"
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/docker/secrets/" in ignored


def test_made_secrets_are_those_the_compose_file_mounts(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets.sh"
    script.write_text((DOCKER / "make-secrets.sh").read_text())
    run("sh", str(script))
    wanted = {Path(s["file"]).name for s in yaml.safe_load(COMPOSE.read_text())["secrets"].values()}
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == wanted
    identity = json.loads((tmp_path / "secrets/s3_identities.json").read_text())["identities"][0]
    credentials = (tmp_path / "secrets/aws_credentials").read_text()
    assert identity["credentials"][0]["secretKey"] in credentials
    assert len((tmp_path / "secrets/ray_token").read_text()) == 64
    again = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_gpu_workers_get_the_cuda_image_and_a_gpu_each(tmp_path: Path) -> None:
    services = compose(tmp_path, COMPOSE, DOCKER / "compose.gpu.yaml")["services"]
    for name in ("head", "demo", "worker-1", "worker-2"):
        assert services[name]["image"].endswith("-cuda"), "one image for all nodes of a cluster"
        assert services[name]["build"]["target"] == "cuda"
    for name in ("worker-1", "worker-2"):
        reserved = services[name]["deploy"]["resources"]["reservations"]
        assert reserved["devices"][0]["count"] == 1
        assert "--num-gpus" in services[name]["command"]


def test_the_demo_submits_what_the_cluster_can_run() -> None:
    text = (
        (DOCKER / "demo.sh").read_text().replace("\\\n", " ").replace("${ROWS:-200000}", "200000")
    )
    commands = [shlex.split(line) for line in text.splitlines() if "jobs.submit" in line]
    assert len(commands) == 2
    for words in commands:
        own = words[words.index("jobs.submit") + 1 :]
        args, rest = submit._parser().parse_known_args(own)
        assert args.needs == ["AWS_SHARED_CREDENTIALS_FILE"]
        command = command_on_cluster(
            args.job, rest, "http://head:8265", ROOT, known_jobs(ROOT / "jobs")
        )
        if args.job == "train":
            overrides = [w for w in command.words if "=" in w]
            experiment = load_experiment(ROOT / "configs/demo.yaml", overrides)
            assert experiment.storage.path == "s3://ple/runs"
