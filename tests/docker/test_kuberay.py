"""The manifests under docker/kuberay against Kubernetes' schema, KubeRay's fields and the code."""

import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.serve import Application

from jobs import train
from pipeline.config import ConfigError
from pipeline.serving.app import ServiceArguments, build
from pipeline.serving.metrics import ServiceMetrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kuberay"
KUBERNETES = "1.33"
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_v1.yaml").read_text())
GROUPS = ("headGroupSpec", "workerGroupSpecs")


def documents() -> list[dict[str, Any]]:
    return [
        document
        for path in sorted(FOLDER.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def label(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


CORE = [d for d in documents() if d["apiVersion"] != "ray.io/v1"]
RAY = [d for d in documents() if d["apiVersion"] == "ray.io/v1"]


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def groups_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in RAY:
        for group in groups_of(document):
            yield f"{label(document)}/{group.get('groupName', 'head')}", group["template"]
    for document in CORE:
        if document["kind"] == "Deployment":
            yield label(document), document["spec"]["template"]


def check_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def check_kuberay(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    for group in groups_of(document):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
        check_kubernetes(wrapped | {"template": group["template"]})
    autoscaler = cluster_of(document).get("autoscalerOptions", {})
    parts = ("resources", "env", "envFrom", "volumeMounts", "securityContext")
    container = {"name": "x"} | {key: autoscaler[key] for key in parts if key in autoscaler}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    check_kubernetes(pod | {"spec": {"containers": [container]}})


@pytest.mark.parametrize("document", CORE, ids=label)
def test_core_objects_are_what_kubernetes_takes(document: dict[str, Any]) -> None:
    check_kubernetes(document)


@pytest.mark.parametrize("document", RAY, ids=label)
def test_ray_objects_are_what_the_operator_takes(document: dict[str, Any]) -> None:
    check_kuberay(document)
    assert cluster_of(document)["rayVersion"] == ray.__version__
    assert cluster_of(document)["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpecs"), {}),
        (("spec", "workerGroupSpecs", 0, "replica"), 1),
        (("spec", "workerGroupSpecs", 0, "rayStartParams"), {"num-cpus": 2}),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "toleration"), []),
        (("spec", "autoscalerOptions", "resources", "request"), {}),
    ],
)
def test_the_checks_find_what_is_wrong(path: tuple[Any, ...], value: Any) -> None:
    document = deepcopy(next(d for d in RAY if d["kind"] == "RayCluster"))
    *parents, last = path
    place: Any = document
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_kuberay(document)


@pytest.mark.parametrize(("name", "template"), list(pods()), ids=[name for name, _ in pods()])
def test_every_pod_has_limits_probes_no_rights_and_no_secret_values(
    name: str, template: dict[str, Any]
) -> None:
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ple"
    for container in spec["containers"]:
        assert container["image"].rpartition(":")[2] not in ("latest", container["image"])
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        for variable in container.get("env", []):
            secret = any(word in variable["name"] for word in ("KEY", "TOKEN", "PASSWORD", "URI"))
            assert "valueFrom" in variable or not secret, variable["name"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in spec.get("volumes", [])}


@pytest.mark.parametrize("document", RAY, ids=label)
def test_what_is_referred_to_is_there(document: dict[str, Any]) -> None:
    names = {label(d) for d in CORE}
    for group in groups_of(document):
        spec = group["template"]["spec"]
        assert f"ServiceAccount/{spec['serviceAccountName']}" in names
        for source in spec["containers"][0]["envFrom"]:
            if "configMapRef" in source:
                assert f"ConfigMap/{source['configMapRef']['name']}" in names
            else:
                assert source["secretRef"]["optional"]
    assert document["metadata"]["namespace"] in {d["metadata"]["name"] for d in CORE}


def test_workers_may_run_on_nodes_that_are_taken_away_and_the_head_may_not() -> None:
    for document in RAY:
        head, *workers = groups_of(document)
        assert "tolerations" not in head["template"]["spec"]
        if document["kind"] == "RayService":
            continue
        for group in workers:
            tolerations = group["template"]["spec"]["tolerations"]
            assert "cloud.google.com/gke-spot" in {t["key"] for t in tolerations}


def test_one_image_for_all_nodes_of_a_cluster() -> None:
    for document in RAY:
        images = {g["template"]["spec"]["containers"][0]["image"] for g in groups_of(document)}
        assert len(images) == 1
        gpus = [
            g["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            for g in groups_of(document)
        ]
        assert any(gpus) == images.pop().endswith("-cuda")


def test_the_training_job_is_one_that_this_code_takes(capsys: pytest.CaptureFixture[str]) -> None:
    job = next(d for d in RAY if d["kind"] == "RayJob")
    python, dash_m, module, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, dash_m, module) == ("python", "-m", "jobs.train")
    assert train.main([*words, "--print-config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["ray"]["address"] == "auto"
    assert resolved["storage"]["path"].startswith("s3://")
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 60


def test_the_service_is_one_that_this_code_builds() -> None:
    service = next(d for d in RAY if d["kind"] == "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == (build.__module__, build.__name__)
    arguments = application["args"]
    assert isinstance(build(ServiceArguments.model_validate(arguments)), Application)
    for wrong, message in (
        ({"serving": {"replica": 2}}, "unknown key serving.replica; nearest valid key: replicas"),
        ({"serving": {"port": 80}}, "set it in Ray Serve's http_options"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(ServiceArguments.model_validate(arguments | wrong))


def test_alerts_watch_metrics_that_there_are() -> None:
    rules = (ROOT / "docker" / "alerts.yaml").read_text()
    used = set(re.findall(r"\bple_serving_\w+", rules))
    families = ServiceMetrics().families()
    known = {family.name for family in families}
    there = {n + end for n in known for end in ("", "_total", "_bucket", "_sum", "_count")}
    assert used
    assert used <= there
    # As Ray 2.60's nodes told them; Ray has no list to compare with.
    assert set(re.findall(r"\bray_\w+", rules)) == {
        "ray_cluster_active_nodes",
        "ray_node_mem_used",
        "ray_node_mem_total",
        "ray_node_disk_utilization_percentage",
        "ray_object_store_fallback_memory",
    }
    guide = (ROOT / "docker" / "README.md").read_text()
    alerts = [r["alert"] for group in yaml.safe_load(rules)["groups"] for r in group["rules"]]
    assert [name for name in alerts if f"| {name} |" not in guide] == []
