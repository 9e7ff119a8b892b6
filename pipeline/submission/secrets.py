"""No secret travels with a job: what it is sent as is shown on Ray's dashboard to all its users."""

import re
from collections.abc import Mapping, Sequence

from pipeline.config.locations import mask
from pipeline.submission.errors import SubmissionError

_SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_?KEY|API_?KEY|_KEY$")
_NAMES_A_FILE = re.compile(r"(_FILE|_PATH)$")
# Forms of keys that are recognised wherever they stand.
_SECRET_FORMS = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}\b|\bgh[pousr]_[A-Za-z0-9]{20,}\b")

_REMEDY = (
    "give it to the cluster's nodes (a Kubernetes secret, an environment file, a mounted "
    "credentials file) and name it with --needs NAME"
)


def refuse_secrets(place: str, text: str) -> None:
    """Raises SubmissionError if a text holds a password in a URI or a well-known form of key."""
    if mask(text) != text:
        raise SubmissionError(f"{place} holds user and password in a URI; {_REMEDY}")
    if _SECRET_FORMS.search(text):
        raise SubmissionError(f"{place} holds an access key; {_REMEDY}")


def parse_environment(assignments: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as a mapping. Raises SubmissionError for secrets and bad words."""
    environment: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SubmissionError("--env: write it as NAME=VALUE")
        environment[name] = value
    _check_environment(environment)
    return environment


def _check_environment(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        upper = name.upper()
        if _SECRET_NAME.search(upper) and not _NAMES_A_FILE.search(upper):
            raise SubmissionError(
                f"--env {name}: values of variables are shown on Ray's dashboard; {_REMEDY}; a "
                "variable that names a file (…_FILE, …_PATH) may be given"
            )
        refuse_secrets(f"--env {name}", value)
