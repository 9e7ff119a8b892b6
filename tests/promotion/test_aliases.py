"""Moving aliases under a lock, against a real `mlflow server`; races of real processes."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import mlflow_server

from pipeline.config.promotion import PromotionConfig
from pipeline.promotion.aliases import PromotionError, aliased, find_version, promote, roll_back
from pipeline.promotion.lock import LockError, promotion_lock

pytestmark = pytest.mark.slow
SETTINGS = PromotionConfig()


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_store):
    with mlflow_server(tmp_path_factory.mktemp("server"), new_store) as running:
        yield running.uri


@pytest.fixture
def shop(server, request):
    """(client, name) of a registered model with versions 1 to 3."""
    client, name = MlflowClient(server, server), request.node.name[:60]
    client.create_registered_model(name)
    run = client.create_run("0").info
    for _ in range(3):
        client.create_model_version(name, f"{run.artifact_uri}/model", run.run_id)
    return client, name


def champion_of(client, name, alias="champion"):
    found = aliased(client, name, alias)
    return None if found is None else str(found.version)


def locks(client, name):
    return [m.name for m in client.search_registered_models() if m.name.startswith(f"{name}.")]


def test_promotions_and_a_rollback(shop):
    client, name = shop
    promote(client, name, "1", None, SETTINGS, {"promotion.rows": "10"})
    assert (champion_of(client, name), champion_of(client, name, "previous")) == ("1", None)
    promote(client, name, "2", "1", SETTINGS, {})
    assert (champion_of(client, name), champion_of(client, name, "previous")) == ("2", "1")
    tags = client.get_model_version(name, "1").tags
    assert tags["promotion.rows"] == "10"
    assert "promotion.promoted" in tags
    assert client.get_model_version(name, "2").tags["promotion.replaced"] == "1"

    assert roll_back(client, name, SETTINGS) == ("1", "2")
    assert (champion_of(client, name), champion_of(client, name, "previous")) == ("1", None)
    assert "promotion.withdrawn" in client.get_model_version(name, "2").tags
    with pytest.raises(PromotionError, match="no @previous to go back to; version 1 stays"):
        roll_back(client, name, SETTINGS)
    assert champion_of(client, name) == "1"
    assert locks(client, name) == []


def test_a_champion_that_changed_since_the_comparison_is_not_replaced(shop):
    client, name = shop
    promote(client, name, "1", None, SETTINGS, {})
    with pytest.raises(PromotionError, match="is now version 1, when versions were compared there"):
        promote(client, name, "2", None, SETTINGS, {"promotion.rows": "10"})
    assert champion_of(client, name) == "1"
    assert client.get_model_version(name, "2").tags == {}
    assert locks(client, name) == []


def test_versions_are_found_by_number_and_alias(shop):
    client, name = shop
    client.set_registered_model_alias(name, "candidate", "3")
    assert str(find_version(client, name, "2").version) == "2"
    assert str(find_version(client, name, "candidate").version) == "3"
    assert str(find_version(client, name, "@candidate").version) == "3"
    for wanted in ("9", "absent"):
        with pytest.raises(PromotionError, match=f"has no version {wanted}"):
            find_version(client, name, wanted)


def _promote(uri, name, version, barrier, results):
    client = MlflowClient(uri, uri)
    client.search_registered_models()
    barrier.wait(60)
    try:
        promote(client, name, version, "1", SETTINGS, {})
        results.put((version, "won"))
    except (LockError, PromotionError) as error:
        results.put((version, type(error).__name__))


def test_of_two_promotions_at_once_one_wins(server, shop):
    """Both compared with champion 1; without the lock both would move it."""
    client, name = shop
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_promote, args=(server, name, version, barrier, results))
        for version in ("2", "3")
    ]
    client.set_registered_model_alias(name, "champion", "1")
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    assert sorted(found.values()) in (["LockError", "won"], ["PromotionError", "won"])
    winner = next(version for version, result in found.items() if result == "won")
    loser = next(version for version, result in found.items() if result != "won")
    assert (champion_of(client, name), champion_of(client, name, "previous")) == (winner, "1")
    assert "promotion.promoted" not in client.get_model_version(name, loser).tags
    assert locks(client, name) == []


def test_many_at_once_never_have_the_lock_together(shop, server):
    client, name = shop
    inside, worst = [], []

    def hold(_):
        own = MlflowClient(server, server)
        for _ in range(60):
            try:
                with promotion_lock(own, name, "count"):
                    inside.append(1)
                    worst.append(len(inside))
                    time.sleep(0.01)
                    inside.pop()
                return True
            except LockError:
                time.sleep(0.02)
        return False

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(hold, range(4)))
    assert max(worst) == 1
    assert locks(client, name) == []


def test_a_lock_left_behind_is_taken_over_by_its_token_only(shop):
    client, name = shop
    client.set_registered_model_alias(name, "champion", "1")
    with promotion_lock(client, name, "promote version 2") as lock:
        with pytest.raises(
            LockError, match=r"holds the lock since .* to promote version 2"
        ) as held:
            promote(client, name, "3", "1", SETTINGS, {})
        assert f"--take-over {lock.token}" in str(held.value)
        with pytest.raises(LockError, match="there is no lock"):
            promote(client, name, "3", "1", SETTINGS, {}, take_over="0123")
        assert champion_of(client, name) == "1"
        lock.check()
        # The holder is taken for dead; then it wakes up.
        promote(client, name, "3", "1", SETTINGS, {}, take_over=lock.token)
        assert champion_of(client, name) == "3"
        with pytest.raises(LockError, match="took the lock over"):
            lock.check()
    assert locks(client, name) == []


def test_what_stops_the_holder_releases_the_lock(shop):
    client, name = shop
    with pytest.raises(KeyError), promotion_lock(client, name, "fail"):
        raise KeyError
    assert locks(client, name) == []


def test_a_grave_is_not_dug_twice(shop):
    """Of two takers the slower one finds the first one's grave, or another's lock, and gives up."""
    client, name = shop
    with promotion_lock(client, name, "sleep") as lock:
        client.create_registered_model(f"{lock.name}.{lock.token}")
        with pytest.raises(LockError, match="somebody else is taking over"):
            promote(client, name, "3", None, SETTINGS, {}, take_over=lock.token)
        lock.check()
        client.delete_registered_model(f"{lock.name}.{lock.token}")
    assert locks(client, name) == []
