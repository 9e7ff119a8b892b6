"""The words of a job's command line, as they must be on the cluster instead of here."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.config import Experiment, load_experiment
from pipeline.config.locations import is_uri, mask
from pipeline.submission.errors import SubmissionError
from pipeline.submission.secrets import refuse_secrets

# Small files that describe what to do; they are sent along.
_SENT = (".yaml", ".yml", ".json")
_SENT_BYTES = 1_000_000
SENT_FOLDER = "submitted"
# Options that name what a job reads or writes, whether or not it is there already.
_LOCATIONS = ("--source", "--input", "--output", "--summary", "--figure")
_OVERRIDE = re.compile(r"\w+(\.\w+)+=")
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1|0\.0\.0\.0")


@dataclass(frozen=True)
class JobCommand:
    """One job as it runs on the cluster.

    Attributes:
        job: name of the module under ``jobs``.
        words: its command line there.
        sent: small files it reads, by their path in the package.
        experiment: the checked experiment, where the job has one.
    """

    job: str
    words: tuple[str, ...]
    sent: dict[str, Path]
    experiment: Experiment | None


def known_jobs(folder: Path) -> list[str]:
    """Jobs that can be submitted: the modules of a folder that have a ``main``."""
    found = [p.stem for p in folder.glob("*.py") if "\ndef main(" in p.read_text()]
    return sorted(set(found) - {"submit", "cluster_demo"})


def command_on_cluster(
    job: str, words: Sequence[str], address: str, root: Path, jobs: Iterable[str]
) -> JobCommand:
    """Checks a command line and rewrites it for the cluster.

    The experiment is checked here, before anything is sent, and joins the cluster it runs on
    (``ray.address=auto``). Small YAML and JSON files go with the job.

    Args:
        job, words: as after ``python -m jobs.``.
        address: the cluster's dashboard; tells whether the cluster is this machine.
        root: folder of this project.
        jobs: names that exist.

    Raises:
        SubmissionError: an unknown job, a path or server only this machine can see, a secret.
        ConfigError: the experiment cannot be used.
    """
    if job not in jobs:
        raise SubmissionError(f"there is no job {job!r}; the jobs are {', '.join(jobs)}")
    for word in words:
        refuse_secrets(f"argument {mask(word)!r}", word)
    config, tracking = _value_of("--config", words), _value_of("--tracking-uri", words)
    experiment = None
    if config is not None or tracking is not None:
        words = _joining(list(words), "--tracking-uri" if config is None else "--config")
    if tracking is not None:
        _check_tracking("--tracking-uri", tracking, address)
    if config is not None:
        if not is_uri(config):
            refuse_secrets(f"--config {config}", _readable(config))
        experiment = load_experiment(config, [w for w in words if _OVERRIDE.match(w)])
        _check_locations(experiment, address)
    sent: dict[str, Path] = {}
    there = tuple(_packed(words, root, sent))
    for word, path in sent.items():
        refuse_secrets(word, _readable(str(path)))
    return JobCommand(job, there, sent, experiment)


def is_loopback(host: str | None) -> bool:
    """Whether a host name means the machine it is used on."""
    return host is not None and _LOOPBACK.fullmatch(host) is not None


def _value_of(option: str, words: Sequence[str]) -> str | None:
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return None


def _joining(words: list[str], option: str) -> list[str]:
    """The words with ``ray.address=auto`` among the overrides (argparse wants them together), or
    behind an option and its value where there are none."""
    given = [w for w in words if w.startswith("ray.address=")]
    if given and given != ["ray.address=auto"]:
        raise SubmissionError(
            "ray.address: a submitted job joins the cluster it runs on; leave it out"
        )
    if given:
        return words
    overrides = [n for n, word in enumerate(words) if _OVERRIDE.match(word)]
    behind = words.index(option) + 2 if option in words else _first(words, option + "=") + 1
    words.insert(overrides[0] if overrides else behind, "ray.address=auto")
    return words


def _first(words: Sequence[str], beginning: str) -> int:
    return next(n for n, word in enumerate(words) if word.startswith(beginning))


def _check_locations(experiment: Experiment, address: str) -> None:
    for key, location in {
        "data.path": experiment.data.path,
        "storage.path": experiment.storage.path,
    }.items():
        if not is_uri(location) and not Path(location).is_absolute():
            raise SubmissionError(
                f"{key}: {location!r} is relative to this machine's folder; give a URI (s3://…) or "
                "the absolute path of a folder that every node shares"
            )
    if experiment.mlflow.tracking_uri is not None:
        _check_tracking("mlflow.tracking_uri", experiment.mlflow.tracking_uri, address)


def _check_tracking(key: str, tracking: str, address: str) -> None:
    if re.match(r"sqlite:///[^/]", tracking) or "://" not in tracking:
        raise SubmissionError(
            f"{key}: {tracking!r} is relative to this machine's folder; name a server (http://…), "
            "or an absolute path in a folder that every node shares"
        )
    if is_loopback(urlsplit(tracking).hostname) and not is_loopback(urlsplit(address).hostname):
        raise SubmissionError(
            f"{key}: {mask(tracking)} is this machine seen from itself; the job runs at "
            f"{urlsplit(address).hostname}: give the name by which the cluster reaches MLflow"
        )


def _packed(words: Sequence[str], root: Path, sent: dict[str, Path]) -> Iterable[str]:
    """The words with local files replaced by their paths in the package, which fill `sent`."""
    option = ""
    for word in words:
        head, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        name = head or option
        option = word if word.startswith("--") and not equals else ""
        if word.startswith("--") and not equals:
            yield word
            continue
        if name in _LOCATIONS:
            _refuse_relative(name, value)
        elif not is_uri(value) and Path(value).suffix in _SENT and Path(value).is_file():
            yield f"{head}{equals}{_place(Path(value), root, sent)}"
            continue
        elif name and not is_uri(value) and Path(value).exists():
            _refuse_relative(name, value)
        yield word


def _place(file: Path, root: Path, sent: dict[str, Path]) -> str:
    path = file.resolve()
    if path.stat().st_size > _SENT_BYTES:
        raise SubmissionError(f"{file}: too large to send with a job; put it where the nodes read")
    if path.is_relative_to(root / "configs"):
        return path.relative_to(root).as_posix()
    place, number = f"{SENT_FOLDER}/{path.name}", 1
    while sent.get(place, path) != path:
        number += 1
        place = f"{SENT_FOLDER}/{path.stem}-{number}{path.suffix}"
    sent[place] = path
    return place


def _refuse_relative(option: str, value: str) -> None:
    if not is_uri(value) and not Path(value).is_absolute():
        raise SubmissionError(
            f"{option} {value}: the job runs on another machine, in a folder that goes with it; "
            "give a URI (s3://…) or the absolute path of a folder that every node shares"
        )


def _readable(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SubmissionError(f"{path}: cannot be read ({error})") from error
