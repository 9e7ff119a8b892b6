"""What a run writes down before training: settings, code revision, dataset."""

import contextlib
import getpass
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from mlflow.entities import Dataset
from pydantic import BaseModel

from pipeline.config import Experiment
from pipeline.data.manifest import Manifest
from pipeline.registry.names import metric_key
from pipeline.registry.uris import mask

# Limits of MLflow: length of a parameter's value and of a dataset's digest.
_PARAM_LENGTH = 6000
_DIGEST_LENGTH = 36
# Stands beside the packages where the code was sent or put into an image, without its checkout.
REVISION_FILE = "revision.json"


def experiment_params(experiment: Experiment) -> dict[str, str]:
    """The experiment as flat text: one entry per setting, and one per feature, task and level.

    Entries of lists hold their non-default settings as JSON, keyed by name or position, so that a
    run with a hundred features stays readable. None is left out; URIs lose their passwords.
    """
    flat: dict[str, str] = {}
    _flatten("", experiment, flat)
    return {k: mask(v)[:_PARAM_LENGTH] for k, v in flat.items()}


def _flatten(prefix: str, section: BaseModel, flat: dict[str, str]) -> None:
    for key in type(section).model_fields:
        value, name = getattr(section, key), f"{prefix}{key}"
        if isinstance(value, BaseModel):
            _flatten(f"{name}.", value, flat)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], BaseModel):
            for position, item in enumerate(value):
                settings = item.model_dump(mode="json", exclude_defaults=True)
                label = settings.pop("name", position)
                flat[metric_key(f"{name}.{label}")] = json.dumps(settings)
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for label, item in value.items():
                settings = item.model_dump(mode="json", exclude_defaults=True)
                flat[metric_key(f"{name}.{label}")] = json.dumps(settings)
        elif isinstance(value, list | tuple | dict):
            flat[name] = json.dumps(value)
        elif value is not None:
            flat[name] = str(value)


def git_tags(folder: Path) -> dict[str, str]:
    """Revision of the checkout `folder` belongs to and whether it was changed; {} without one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy inside someone else's checkout is not that checkout's code.
    if git("ls-files", "--error-unmatch", ".") is None:
        return _packed_revision(folder)
    revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    if revision is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": revision, "git.dirty": str(bool(changes)).lower()}


def _packed_revision(folder: Path) -> dict[str, str]:
    """The revision that was written beside the code when it was packed; {} without one."""
    try:
        tree = json.loads((folder.parents[1] / REVISION_FILE).read_text())
    except (OSError, ValueError, IndexError):
        return {}
    return {str(name): str(value) for name, value in tree.items()}


def run_tags(manifest: Manifest) -> dict[str, str]:
    """Who runs what: git revision, program, user, dataset."""
    tags = git_tags(Path(__file__).parent)
    tags["mlflow.source.name"] = Path(sys.argv[0]).name
    tags["mlflow.source.type"] = "LOCAL"
    tags["dataset.digest"] = manifest.digest
    with contextlib.suppress(KeyError, OSError):  # A container's user id may have no name.
        tags["mlflow.user"] = getpass.getuser()
    return tags


def logged_dataset(manifest: Manifest, path: str) -> Dataset:
    """The dataset as MLflow shows it: digest, rows by split, columns."""
    rows = {split: manifest.rows(split) for split in manifest.splits}
    return Dataset(
        name=manifest.name,
        digest=manifest.digest[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": mask(path)}),
        schema=json.dumps({"mlflow_colspec": _types((c.name, c.type) for c in manifest.columns)}),
        profile=json.dumps({"rows": rows, "sha256": manifest.digest}),
    )


def _types(columns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for name, kind in columns]
