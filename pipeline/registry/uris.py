"""Tracking URIs: the default store, whether a server answers, and texts without passwords."""

import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.config import ConfigError, Experiment
from pipeline.config.locations import is_uri, mask

TIMEOUT_SECONDS = 4.0
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class TrackingError(ValueError):
    """MLflow cannot be used as configured; the message names the URI and what to do."""


def local_store(experiment: Experiment) -> Path | None:
    """Folder of the artifacts of a SQLite store (by default of the store too); None of a server.

    MLflow would otherwise put them into the folder the job happens to run in.
    """
    uri = experiment.mlflow.tracking_uri
    if uri is not None and not uri.startswith("sqlite:"):
        return None
    if uri is not None and is_uri(experiment.storage.path):
        return Path(uri.removeprefix("sqlite:///")).resolve().parent
    return Path(experiment.storage.path).resolve()


def tracking_uri(experiment: Experiment) -> str:
    """The configured URI, or ``sqlite:///`` with the absolute path of storage.path/mlflow.db.

    Raises:
        ConfigError: storage.path is an object store, in which a SQLite file cannot be.
    """
    if experiment.mlflow.tracking_uri is not None:
        return experiment.mlflow.tracking_uri
    if is_uri(experiment.storage.path):
        raise ConfigError(
            f"mlflow.tracking_uri: set it to an MLflow server; storage.path "
            f"{mask(experiment.storage.path)} can hold no SQLite file"
        )
    return f"sqlite:///{Path(experiment.storage.path).resolve() / 'mlflow.db'}"


def mlflow_client(uri: str) -> MlflowClient:
    """A client that gives up on a server that is gone within seconds, and that prints nothing.

    MLflow takes both from the environment only: by default it retries a call for minutes, and
    prints the address of a run that ends, password included. What is set there is kept.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def mlflow_errors(uri: str, action: str, remedy: str = "") -> Iterator[None]:
    """Turns what MLflow raises into a TrackingError that says where, at what, and what to do."""
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = mask(str(error)) + (f"; {remedy}" if remedy else "")
        raise TrackingError(f"MLflow at {mask(uri)} refused to {action}: {reason}") from error


def check_reachable(uri: str) -> None:
    """Asks the server once, with short timeouts; MLflow's own retries would take minutes.

    Raises:
        TrackingError: nothing answers, or the answer is a server error. URIs without a host
            (SQLite, Databricks profiles) are not checked here.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    try:
        if scheme in ("http", "https"):
            _check_health(uri)
        elif scheme in _DATABASE_PORTS and parts.hostname:
            address = (parts.hostname, parts.port or _DATABASE_PORTS[scheme])
            socket.create_connection(address, timeout=TIMEOUT_SECONDS).close()
    except (OSError, ValueError, HTTPException) as error:
        raise TrackingError(
            f"MLflow at {mask(uri)} does not answer ({_cause(error)}): start the server, correct "
            "mlflow.tracking_uri, or remove it to use a SQLite file under storage.path"
        ) from None


def _check_health(uri: str) -> None:
    parts = urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        urllib.request.urlopen(address.rstrip("/") + "/health", timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
        # A proxy in front may hide /health; that something answers is enough here.
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise
        # Whether the certificate is trusted is MLflow's own setting.


def _cause(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"/health says HTTP {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    return mask(getattr(reason, "strerror", None) or str(reason))
