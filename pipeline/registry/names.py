"""Names MLflow accepts: keys are made to fit, what a user chose is refused early."""

import re

from pipeline.config import ConfigError, Experiment


def metric_key(text: str) -> str:
    """`text` with every character MLflow does not allow in a key replaced by ``_``."""
    return re.sub(r"[^\w.\-: /]", "_", text)


def logged_model_name(name: str) -> str:
    """`name` with every character MLflow does not allow in a logged model replaced by ``_``."""
    return re.sub(r"[/:.%\"']", "_", name)


def registered_name(experiment: Experiment) -> str:
    """Name of the registered model."""
    return experiment.mlflow.model_name or experiment.name


def check_names(experiment: Experiment) -> None:
    """Refuses before training what MLflow would refuse after it.

    Raises:
        ConfigError: naming the key and the rule.
    """
    alias, name = experiment.mlflow.alias, registered_name(experiment)
    if not re.fullmatch(r"[\w\-]{1,255}", alias):
        raise ConfigError(f"mlflow.alias: {alias!r} may hold letters, digits, _ and - only")
    if re.fullmatch(r"latest|v\d+", alias.lower()):
        raise ConfigError(
            f"mlflow.alias: MLflow reserves {alias!r}; choose another, such as candidate"
        )
    if not name.strip() or re.search(r"[/:]", name) or name in (".", ".."):
        raise ConfigError(
            f"mlflow.model_name: {name!r} is no name for a registered model (no / and no :); "
            "set mlflow.model_name"
        )
