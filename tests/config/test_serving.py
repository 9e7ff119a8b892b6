import pytest

from pipeline.config import ConfigError
from pipeline.config.service import load_service
from pipeline.config.serving import ServingConfig

ONE = {"name": "one", "uri": "models:/shop@champion", "traffic": 1}
TWO = {"name": "two", "uri": "models:/shop/2"}


def test_defaults_bind_to_loopback_and_have_limits():
    config = ServingConfig()
    assert config.host == "127.0.0.1"
    assert not config.choose_version
    assert config.limits.body_bytes == 8 * 2**20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"models": [ONE, ONE]}, "the name one stands twice"),
        ({"models": [TWO | {"shadow": 1}]}, "give `traffic` to at least one"),
        ({"models": [ONE, TWO]}, "two has neither `traffic` nor `shadow`"),
        ({"models": [ONE | {"shadow": 0.5}]}, "one: give `traffic` or `shadow`, not both"),
        ({"models": [ONE | {"uri": "runs:/1/model"}]}, "pattern"),
        ({"models": [ONE | {"uri": "models:/shop/latest"}]}, "pattern"),
        ({"models": [ONE | {"name": "a b"}]}, "pattern"),
        ({"port": 0}, "greater than or equal to 1"),
        ({"limits": {"rows": 0}}, "greater than 0"),
        ({"batching": {"max_wait_ms": -1}}, "greater than or equal to 0"),
        ({"replica": 2}, "Extra inputs"),
    ],
)
def test_what_cannot_work_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ServingConfig.model_validate(settings)


def test_a_model_without_a_role_may_wait_to_be_chosen():
    assert ServingConfig.model_validate({"models": [ONE, TWO], "choose_version": True})


def test_a_service_without_an_experiment():
    settings = load_service("models:/shop@champion", ["serving.port=9000", "ray.address=auto"])
    (model,) = settings.serving.models
    assert (model.uri, model.traffic) == ("models:/shop@champion", 1.0)
    assert settings.serving.port == 9000
    assert settings.ray.address == "auto"
    with pytest.raises(ConfigError, match=r"unknown key serving\.ports; nearest valid key: port"):
        load_service("models:/shop@champion", ["serving.ports=1"])
    with pytest.raises(ConfigError, match="unknown key train"):
        load_service("models:/shop@champion", ["train.epochs=1"])
    with pytest.raises(ConfigError, match=r"serving\.models\.0\.uri"):
        load_service("shop")
