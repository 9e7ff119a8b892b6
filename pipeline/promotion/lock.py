"""A lock on a registered model, made of the one thing a registry does atomically: creating a name.

MLflow moves aliases without looking at where they point, so two promotions that have both compared
with champion 3 would both move it. Here whoever moves an alias holds a registered model called
``NAME.promotion-lock``, which cannot be created twice; tags say who holds it, since when, and a
token. It is held for seconds, while the alias is checked and moved, never while rows are scored.

A process that dies with the lock leaves it behind. Nobody guesses that it is dead: the message
names the token, and ``--take-over TOKEN`` removes just that lock. It is renamed first, to a name
made of its token, which succeeds for one of several takers only.
"""

import getpass
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

_SUFFIX = ".promotion-lock"
_TAKEN = "RESOURCE_ALREADY_EXISTS"
_ABSENT = "RESOURCE_DOES_NOT_EXIST"


class LockError(RuntimeError):
    """The lock is held by somebody else, or was taken away; the message says what to do."""


@dataclass(frozen=True)
class Lock:
    """A lock that is held."""

    client: MlflowClient
    name: str
    token: str

    def check(self) -> None:
        """Raises LockError if somebody has taken the lock over."""
        if _token(self.client, self.name) != self.token:
            raise LockError(
                f"{self.name}: somebody took the lock over while it was held; nothing more is "
                "moved: look at the aliases, then run again"
            )


@contextmanager
def promotion_lock(
    client: MlflowClient, model: str, purpose: str, take_over: str | None = None
) -> Iterator[Lock]:
    """Holds the lock of a registered model.

    Args:
        model: name of the registered model.
        purpose: told to whoever finds it held.
        take_over: token of a lock left behind, to be removed first.

    Raises:
        LockError: it is held, or the token is not that of the lock that is there.
        MlflowException: the registry refused otherwise.
    """
    name = model + _SUFFIX
    if take_over is not None:
        _remove(client, name, take_over)
    token = secrets.token_hex(8)
    try:
        client.create_registered_model(
            name,
            tags={"token": token, "owner": _owner(), "since": _now(), "purpose": purpose},
            description=f"Held while an alias of {model} is moved; jobs.promote removes it.",
        )
    except MlflowException as error:
        # MLflow looks the taken name up, and may find it released by then.
        if error.error_code not in (_TAKEN, _ABSENT):
            raise
        # A retried call finds what the first one made, whose answer was lost on the way.
        if _token(client, name) != token:
            raise LockError(_held(client, name, model)) from None
    try:
        yield Lock(client, name, token)
    except BaseException:
        # What stopped the holder matters more than a lock that stays.
        with suppress(MlflowException):
            _release(client, name, token)
        raise
    _release(client, name, token)


def _release(client: MlflowClient, name: str, token: str) -> None:
    # One that was taken over is not ours to remove.
    if _token(client, name) == token:
        client.delete_registered_model(name)


def _remove(client: MlflowClient, name: str, token: str) -> None:
    if _token(client, name) != token:
        raise LockError(f"--take-over {token}: there is no lock {name} with this token")
    grave = f"{name}.{token}"
    try:
        client.rename_registered_model(name, grave)
    except MlflowException as error:
        if error.error_code not in (_TAKEN, _ABSENT):
            raise
        raise LockError(f"--take-over {token}: somebody else is taking over {name}") from None
    if _token(client, grave) != token:
        # Another one was renamed: the lock was released and taken between the two calls.
        client.rename_registered_model(grave, name)
        raise LockError(f"--take-over {token}: the lock {name} has changed hands; run again")
    client.delete_registered_model(grave)


def _held(client: MlflowClient, name: str, model: str) -> str:
    try:
        tags = client.get_registered_model(name).tags
    except MlflowException:
        return f"{model}: another promotion was just being done; run again"
    since = float(tags.get("since", "0"))
    when = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"{model}: {tags.get('owner', 'somebody')} holds the lock since {when} "
        f"({max(time.time() - since, 0):,.0f} s ago), to {tags.get('purpose', 'promote')}; nothing "
        "was moved. It is held for seconds: run again. If that process is dead, add --take-over "
        f"{tags.get('token', '')}"
    )


def _token(client: MlflowClient, name: str) -> str | None:
    try:
        token: str | None = client.get_registered_model(name).tags.get("token")
    except MlflowException as error:
        if error.error_code != _ABSENT:
            raise
        return None
    return token


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container's user id may have no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def _now() -> str:
    return f"{time.time():.3f}"
