"""The service within this process, over a real registry, without Ray and without a port."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

import numpy as np
import pyarrow as pa
import pytest
from starlette.requests import Request

from pipeline.benchmark.malformed import MalformedRequests
from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.serving.arrow_stream import MEDIA_TYPE as ARROW
from pipeline.serving.body import RequestError
from pipeline.serving.http import ScoringHttp
from pipeline.serving.service import ScoringService
from pipeline.serving.versions import VersionError, VersionStore

pytestmark = pytest.mark.slow

CHAMPION = {"name": "champion", "uri": "models:/demo@champion", "traffic": 1.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def serve(versions, scenario: Callable[[ScoringService, Clock], Awaitable[None]], **settings):
    """Runs a scenario with a started service that looks at the registry when told to."""
    config = ServingConfig(**{"models": [CHAMPION], "threads": 1, "poll_seconds": 1e6} | settings)
    models = [ServedModelConfig.model_validate(model) for model in config.models]

    async def main() -> None:
        clock = Clock()
        service = ScoringService(config, models, VersionStore(versions.registry.tracking_uri))
        service.models._clock = clock
        await service.start()
        try:
            await scenario(service, clock)
        finally:
            await service.close()

    versions.move_champion("1")
    asyncio.run(main())


def body_of(rows: pa.Table) -> bytes:
    return json.dumps({"rows": rows.to_pylist()}).encode()


def counted(service: ScoringService, name: str, **labels: str) -> float:
    value = service.metrics.registry.get_sample_value("ple_serving_" + name, labels)
    return 0.0 if value is None else value


async def ask(service, method="POST", path="/score", body=b"", headers=()):
    """(status, JSON, table or text) of one request to the HTTP side."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in dict(headers).items()],
    }
    parts = [body] if isinstance(body, bytes) else list(body)

    async def receive():
        more = len(parts) > 1
        return {"type": "http.request", "body": parts.pop(0), "more_body": more}

    response = await ScoringHttp(service).respond(Request(scope, receive))
    media = response.headers["content-type"]
    if media == ARROW:
        return response.status_code, pa.ipc.open_stream(response.body).read_all()
    text = response.body.decode()
    return response.status_code, json.loads(text) if media == "application/json" else text


def test_scores_are_those_of_the_scorer(versions):
    rows = versions.registry.rows(300)
    wanted_BT = versions.scorers["1"].score_table(rows)

    async def scenario(service, _):
        parts = [rows.slice(start, 50) for start in range(0, 300, 50)]
        answers = await asyncio.gather(*(service.score(body_of(part)) for part in parts))
        found_BT = np.concatenate([answer.scores_BT for answer in answers])
        np.testing.assert_allclose(found_BT, wanted_BT, rtol=1e-6, atol=1e-7)
        tree = json.loads(answers[0].json())
        assert tree["name"] == "champion"
        assert (tree["model"], tree["version"]) == ("demo", "1")
        assert list(tree["scores"]) == ["click", "convert", "like"]
        np.testing.assert_array_equal(tree["scores"]["like"], found_BT[:50, 2])
        assert counted(service, "rows_total", model="champion", version="1") == 300
        # Six requests at once: the first is under way when the others come in.
        assert counted(service, "batch_rows_count", model="champion") <= 3

    serve(versions, scenario)


def test_unknown_ids_and_missing_values_have_a_score(versions):
    async def scenario(service, _):
        known = {"user_id": 1, "category": "no such category", "item_tags": [10**15]}
        other = {"user_id": 1, "category": "nor this one", "item_tags": [-(10**15)]}
        rows = [known, other, {}, {"user_id": None, "age": None}]
        answer = await service.score(json.dumps({"rows": rows}).encode())
        assert np.isfinite(answer.scores_BT).all()
        np.testing.assert_array_equal(answer.scores_BT[0], answer.scores_BT[1])
        np.testing.assert_array_equal(answer.scores_BT[2], answer.scores_BT[3])
        assert (answer.scores_BT[0] != answer.scores_BT[2]).any()

    serve(versions, scenario)


def test_unknown_ids_are_counted_by_feature(versions):
    async def scenario(service, _):
        def unknown():
            registry, name = service.metrics.registry, "ple_serving_unknown_ids_total"
            (family,) = (m for m in registry.collect() if m.name == "ple_serving_unknown_ids")
            found = {s.labels["feature"]: s.value for s in family.samples if s.name == name}
            assert {s.labels["model"] for s in family.samples} == {"champion"}
            return found

        # Every feature from the start, and no other label whatever comes in.
        features = {*versions.scorers["1"].id_columns}
        assert features == {"user_id", "item_id", "category", "city", "device", "hour"} | {
            "item_tags",
            "interests",
        }
        assert unknown() == dict.fromkeys(features, 0)
        rows = [{"category": "none such", "item_tags": [10**15, 10**15 + 1]}, {"category": None}]
        good = service.score(json.dumps({"rows": [*rows, {}]}).encode())
        # In one call with a request that cannot be scored, which has another unknown id.
        row = {"category": "?", "interests": ["a", "b"], "interest_weights": [1.0]}
        bad = service.score(json.dumps({"rows": [row]}).encode())
        answers = await asyncio.gather(good, bad, return_exceptions=True)
        assert isinstance(answers[1], RequestError)
        assert unknown() == dict.fromkeys(features, 0) | {"category": 1, "item_tags": 2}

    serve(versions, scenario)


def test_values_that_do_not_go_together_name_their_field(versions):
    async def scenario(service, _):
        row = {"interests": ["a", "b"], "interest_weights": [1.0]}
        status, tree = await ask(service, body=json.dumps({"rows": [{}, row]}).encode())
        assert status == 422
        assert tree["error"]["field"] in ("interests", "interest_weights")
        assert tree["error"]["row"] == 1

    serve(versions, scenario)


def test_the_alias_is_followed_and_a_bad_version_is_not_taken(versions):
    broken = versions.broken

    async def scenario(service, clock):
        async def version():
            return (await service.score(b'{"rows": [{}]}')).version.id.version

        assert await version() == "1"
        versions.move_champion("2")
        assert await version() == "1"
        await service.models.refresh()
        assert await version() == "2"
        assert counted(service, "version_info", model="champion", registered="demo", version="2")
        assert not counted(
            service, "version_info", model="champion", registered="demo", version="1"
        )

        versions.move_champion(broken)
        await service.models.refresh()
        await service.models.refresh()  # not tried again before its time
        assert await version() == "2"
        assert counted(service, "loads_total", model="champion", outcome="failed") == 1
        assert counted(service, "load_failing", model="champion") == 1
        status, tree = await ask(service, "GET", "/health")
        assert (status, tree["status"]) == (200, "degraded")
        assert tree["models"]["champion"]["version"] == "2"
        failure = tree["models"]["champion"]["failure"]
        assert failure.startswith(f"models:/demo/{broken} cannot be served: ")
        assert str(versions.registry.folder) not in failure
        assert "/tmp" not in failure

        clock.now += 2e6
        await service.models.refresh()
        assert counted(service, "loads_total", model="champion", outcome="failed") == 2

        versions.move_champion("1")
        await service.models.refresh()
        assert await version() == "1"
        assert (await ask(service, "GET", "/health"))[1]["status"] == "ready"
        assert counted(service, "load_failing", model="champion") == 0

    serve(versions, scenario)


def test_the_registry_may_go_away(versions, monkeypatch):
    async def scenario(service, _):
        monkeypatch.setattr(service.models._store, "_tracking_uri", "http://127.0.0.1:9/secret")
        await service.models.refresh()
        assert counted(service, "registry_up") == 0
        status, tree = await ask(service, "GET", "/health")
        assert (status, tree["status"]) == (200, "degraded")
        assert "does not answer" in tree["registry"]
        assert "secret" not in tree["registry"]
        assert (await service.score(b'{"rows": [{}]}')).version.id.version == "1"

    serve(versions, scenario)


def test_a_service_does_not_start_without_its_models(versions):
    broken = {"name": "b", "uri": f"models:/demo/{versions.broken}"}

    async def scenario(service, _):
        status, tree = await ask(service, "GET", "/health")
        assert (status, tree["status"]) == (200, "degraded")
        assert tree["models"]["b"]["version"] is None
        status, tree = await ask(service, path="/score?version=b", body=b'{"rows": [{}]}')
        assert (status, tree["error"]["code"]) == (503, "not_loaded")
        assert counted(service, "requests_total", outcome="not_loaded") == 1

    # A model that answers must be there; one that only shadows may come later.
    with pytest.raises(VersionError, match=r"models:/demo/\d+ cannot be served"):
        serve(versions, scenario, models=[CHAMPION, broken | {"traffic": 0.5}])
    serve(versions, scenario, models=[CHAMPION, broken | {"shadow": 1.0}], choose_version=True)


def test_a_shadow_scores_the_same_rows_and_changes_no_answer(versions):
    rows = versions.registry.rows(40)
    one_BT, two_BT = (versions.scorers[v].score_table(rows) for v in "12")
    shadow = {"name": "next", "uri": "models:/demo/2", "shadow": 1.0}

    async def scenario(service, _):
        answer = await service.score(body_of(rows))
        np.testing.assert_allclose(answer.scores_BT, one_BT, rtol=1e-6, atol=1e-7)
        for _ in range(500):
            if counted(service, "shadow_requests_total", model="next", outcome="scored"):
                break
            await asyncio.sleep(0.01)
        apart_BT = np.abs(one_BT - two_BT)
        for at, task in enumerate(["click", "convert", "like"]):
            labels = {"model": "next", "task": task}
            assert counted(service, "shadow_difference_count", **labels) == 40
            total = counted(service, "shadow_difference_sum", **labels)
            assert total == pytest.approx(apart_BT[:, at].sum(), rel=1e-4)
            below = counted(service, "shadow_difference_bucket", le="0.01", **labels)
            assert below == np.count_nonzero(apart_BT[:, at] <= 0.01)

    serve(versions, scenario, models=[CHAMPION, shadow])


def test_http_faults(versions):
    async def scenario(service, _):
        good = b'{"rows": [{}]}'

        async def fault(*args, **kwargs):
            status, tree = await ask(service, *args, **kwargs)
            return status, tree["error"]["code"]

        assert await fault("GET", "/score") == (405, "wrong_method")
        assert await fault("GET", "/nowhere") == (404, "no_such_path")
        assert await fault(path="/score?version=champion", body=good) == (403, "version_not_free")
        assert await fault(path="/score?x=1", body=good) == (400, "query")
        assert await fault(body=good, headers={"content-type": "text/plain"}) == (415, "media_type")
        zipped = {"content-encoding": "gzip"}
        assert await fault(body=good, headers=zipped) == (415, "content_encoding")
        assert await fault(body=good, headers={"x-request-key": "k" * 257}) == (431, "long_key")
        assert await fault(body=good, headers={"content-length": "65"}) == (413, "body_too_large")
        assert await fault(body=[b" " * 40, b" " * 40]) == (413, "body_too_large")
        assert (await ask(service, body=[b'{"rows": ', b"[{}]}"]))[0] == 200
        assert counted(service, "requests_total", outcome="body_too_large") == 2
        assert counted(service, "requests_total", outcome="ok") == 1

    serve(versions, scenario, limits={"body_bytes": 64})


def test_a_fault_of_our_own_says_nothing_but_a_number(versions, monkeypatch, caplog):
    async def scenario(service, _):
        version = service.models.by_name["champion"].current
        monkeypatch.setattr(version._scorer, "score_table", lambda *_: 1 / 0)
        status, tree = await ask(service, body=b'{"rows": [{}]}')
        assert status == 500
        number = re.fullmatch(r".* under ([0-9a-f]{12})", tree["error"]["message"])[1]
        assert "ZeroDivisionError" in caplog.text
        assert number in caplog.text
        assert counted(service, "requests_total", outcome="internal_error") == 1

    serve(versions, scenario)


def test_slow_bodies_end(versions):
    async def scenario(service, _):
        async def never():
            await asyncio.sleep(60)

        scope = {"type": "http", "method": "POST", "path": "/score", "headers": []}
        request = Request(scope | {"query_string": b""}, never)
        response = await asyncio.wait_for(ScoringHttp(service).respond(request), 5)
        assert response.status_code == 408

    serve(versions, scenario, limits={"body_seconds": 0.05})


def test_malformed_bodies_name_their_field(versions):
    schema = versions.scorers["1"].schema

    async def scenario(service, _):
        drawn = MalformedRequests(schema, service.config.limits).draw(600, seed=5)
        for request in drawn:
            if request.path != "/score" or request.method != "POST":
                continue
            status, tree = await ask(service, body=request.body, headers=request.headers)
            assert 400 <= status < 500, request
            if request.named is not None:
                assert tree["error"]["field"] == request.named[:100], request

    serve(versions, scenario)


def test_metrics_are_prometheus_text(versions):
    from prometheus_client.parser import text_string_to_metric_families

    async def scenario(service, _):
        await ask(service, body=b'{"rows": [{}, {}]}')
        status, text = await ask(service, "GET", "/metrics")
        assert status == 200
        families = {f.name: f for f in text_string_to_metric_families(text)}
        (rows,) = families["ple_serving_rows"].samples
        assert rows.value == 2
        assert rows.labels == {"model": "champion", "version": "1", "replica": "0"}
        assert "ple_serving_process_resident_memory_bytes" in families
        assert {
            s.labels["le"]
            for s in families["ple_serving_request_seconds"].samples
            if s.labels.get("le")
        }

    serve(versions, scenario)
