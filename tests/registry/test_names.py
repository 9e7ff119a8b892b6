"""Names MLflow accepts, and the refusal of others before training."""

import pytest

from pipeline.config import ConfigError
from pipeline.registry.names import check_names, logged_model_name, metric_key
from pipeline.registry.tracking import Tracker


def test_keys_and_names_are_made_legal():
    assert metric_key("valid/click?(7d)/auc") == "valid/click__7d_/auc"
    assert metric_key("train/loss/a-b.c d:e") == "train/loss/a-b.c d:e"
    assert logged_model_name("shop/v1.2:a") == "shop_v1_2_a"


@pytest.mark.parametrize("alias", ["latest", "Latest", "v3", "V12", "a b", "", "a/b"])
def test_an_alias_mlflow_refuses_is_refused_before_a_run_is_opened(shop, shop_manifest, alias):
    with pytest.raises(ConfigError, match=r"^mlflow\.alias: "):
        Tracker.start(shop(mlflow={"alias": alias}), shop_manifest)


@pytest.mark.parametrize("name", ["a/b", "a:b", " ", ".."])
def test_a_model_name_mlflow_refuses_is_refused(shop, name):
    with pytest.raises(ConfigError, match=r"^mlflow\.model_name: "):
        check_names(shop(mlflow={"model_name": name}))
    with pytest.raises(ConfigError, match=r"set mlflow\.model_name"):
        check_names(shop(name=name))


def test_good_names_pass(shop):
    check_names(shop(name="shop.ranker v2", mlflow={"alias": "candidate_v2"}))
