"""Moving the champion: forward after a comparison, back after a regret."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.config.promotion import PromotionConfig
from pipeline.promotion.lock import Lock, promotion_lock

# What clients of MLflow get where an alias or a name is not there.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class PromotionError(RuntimeError):
    """Nothing was moved, or not all; the message says what and what to do."""


def aliased(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    """The version an alias points at; None if there is no such alias."""
    try:
        return client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        return None


def find_version(client: MlflowClient, model: str, wanted: str) -> ModelVersion:
    """A version by number or alias. Raises PromotionError."""
    alias = wanted.removeprefix("@")
    found = None
    if wanted.isdigit():
        try:
            found = client.get_model_version(model, wanted)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
    else:
        found = aliased(client, model, alias)
    if found is None:
        raise PromotionError(
            f"{model} has no version {wanted}; give the number of one that is registered, or an "
            "alias such as candidate"
        )
    return found


def promote(
    client: MlflowClient,
    model: str,
    version: str,
    compared_with: str | None,
    settings: PromotionConfig,
    tags: Mapping[str, str],
    take_over: str | None = None,
) -> None:
    """Makes a version the champion, if the champion is still the one it was compared with.

    Args:
        model: registered model.
        version: the candidate's number.
        compared_with: the champion's number; None = there was none.
        settings: names of the aliases.
        tags: evidence for the version, written before anything moves.
        take_over: see :func:`pipeline.promotion.lock.promotion_lock`.

    Raises:
        LockError, PromotionError: somebody else was faster; nothing was moved.
        MlflowException: the registry refused.
    """
    purpose = f"promote version {version}"
    with promotion_lock(client, model, purpose, take_over) as lock:
        now = aliased(client, model, settings.champion)
        if (None if now is None else str(now.version)) != compared_with:
            was = "there was no champion" if compared_with is None else f"it was {compared_with}"
            held = "none" if now is None else f"version {now.version}"
            raise PromotionError(
                f"{model}: @{settings.champion} is now {held}, when versions were compared {was}: "
                "somebody else promoted meanwhile; nothing was moved. Compare again"
            )
        replaced = {} if compared_with is None else {"promotion.replaced": compared_with}
        for key, value in ({**tags, **replaced, "promotion.promoted": _now()}).items():
            client.set_model_version_tag(model, version, key, value)
        _move(client, model, version, compared_with, settings, lock)


def roll_back(
    client: MlflowClient, model: str, settings: PromotionConfig, take_over: str | None = None
) -> tuple[str, str]:
    """Moves the champion back to the previous version, once.

    The alias of the previous version is removed: a second call in a row has nothing to go back to
    and says so, rather than bring back the version that was just withdrawn.

    Returns:
        (version that is champion now, version that was).

    Raises:
        LockError, PromotionError: nothing was moved.
    """
    with promotion_lock(client, model, "roll back", take_over) as lock:
        champion = aliased(client, model, settings.champion)
        previous = aliased(client, model, settings.previous)
        if champion is None:
            raise PromotionError(f"{model} has no @{settings.champion} to roll back")
        if previous is None or previous.version == champion.version:
            raise PromotionError(
                f"{model}: there is no @{settings.previous} to go back to; version "
                f"{champion.version} stays @{settings.champion}. It is removed by a rollback, so "
                "that a second one does not bring back what was withdrawn; promote the version you "
                "want with --version"
            )
        withdrawn, restored = str(champion.version), str(previous.version)
        lock.check()
        client.set_registered_model_alias(model, settings.champion, restored)
        client.delete_registered_model_alias(model, settings.previous)
        client.set_model_version_tag(model, withdrawn, "promotion.withdrawn", _now())
        client.set_model_version_tag(model, restored, "promotion.restored", _now())
    return restored, withdrawn


def _move(
    client: MlflowClient,
    model: str,
    version: str,
    champion: str | None,
    settings: PromotionConfig,
    lock: Lock,
) -> None:
    """`previous` first: if the second call fails, the champion is still the old one."""
    before = aliased(client, model, settings.previous)
    lock.check()
    if champion is not None:
        client.set_registered_model_alias(model, settings.previous, champion)
    elif before is not None:
        # Left over from a champion whose alias somebody removed by hand.
        client.delete_registered_model_alias(model, settings.previous)
    try:
        client.set_registered_model_alias(model, settings.champion, version)
    except MlflowException:
        with suppress(MlflowException):
            if before is not None:
                client.set_registered_model_alias(model, settings.previous, str(before.version))
            else:
                client.delete_registered_model_alias(model, settings.previous)
        raise


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
