"""The marker that makes a folder a checkpoint: what is in it, whose it is, how good it was."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.files import FileRecord

MARKER = "marker.json"
FORMAT = "ple-checkpoint"
VERSION = 2
_ABSENT = object()


class DamagedMarkerError(ValueError):
    """A marker that was not written like this."""


@dataclass(frozen=True)
class Marker:
    """What the marker says.

    Attributes:
        step: training steps done.
        score: the selection metric of an evaluation at this step, higher is better; None = none.
        best_step: the step of the best evaluation so far; None = none so far.
        world_size: workers that saved it.
        identity: what a run must share with it to go on from it.
        files: all other files of the folder.
        saved_at: ISO 8601, UTC.
    """

    step: int
    score: float | None
    best_step: int | None
    world_size: int
    identity: dict[str, Any]
    files: tuple[FileRecord, ...]
    saved_at: str = ""

    def to_text(self) -> str:
        """The marker's text: compact JSON in one fixed form, with a digest of itself."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        body["files"] = list(body["files"])
        return _canonical({**body, "digest": _digest(body)})

    @staticmethod
    def from_text(text: str, location: str) -> "Marker":
        """Reads a marker.

        Raises:
            DamagedMarkerError: it is not as it was written; any changed byte is found.
            CheckpointError: it is whole, but of a version that this code does not know.
        """
        try:
            body = json.loads(text)
            digest = body.pop("digest")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise DamagedMarkerError("is not a marker") from error
        if digest != _digest(body) or body.get("format") != FORMAT:
            raise DamagedMarkerError("is damaged (its digest does not match)")
        if body["version"] != VERSION:
            raise CheckpointError(
                f"{location}: a checkpoint of format version {body['version']}, and this code "
                f"knows version {VERSION}; use the version of the code that saved it, or start a "
                "new run"
            )
        if _canonical({**body, "digest": digest}) != text:
            raise DamagedMarkerError("is damaged (not in the form it was written in)")
        del body["format"], body["version"]
        files = tuple(FileRecord(**record) for record in body.pop("files"))
        return Marker(**body, files=files)


def now_text() -> str:
    """The time for ``saved_at``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def normalised(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it comes back from JSON. Raises TypeError where it holds anything else."""
    tree: dict[str, Any] = json.loads(json.dumps(dict(identity), sort_keys=True))
    return tree


def check_identity(location: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Makes sure that a run may go on from a checkpoint.

    Raises:
        CheckpointError: something differs; the message lists every name with both values.
    """
    before, now = dict(_flat(saved)), dict(_flat(present))
    names = [
        name
        for name in dict.fromkeys([*before, *now])
        if before.get(name, _ABSENT) != now.get(name, _ABSENT)
    ]
    if names:
        lines = (
            f"{name}: {_shown(before.get(name, _ABSENT))} in the checkpoint, "
            f"{_shown(now.get(name, _ABSENT))} in this run"
            for name in names
        )
        raise CheckpointError(
            f"{location}: saved by a run that differs from this one:\n  "
            + "\n  ".join(lines)
            + "\nResume with the configuration it was saved with, or start a new run"
        )


def kept_steps(markers: Mapping[int, Marker], keep_last: int, keep_best: int) -> set[int]:
    """Steps of the checkpoints to keep: the latest, the best, and those that these call best."""
    latest = sorted(markers)[-keep_last:]
    scored = [marker for marker in markers.values() if marker.score is not None]
    # The earlier of two that are equally good, as the evaluation does.
    scored.sort(key=lambda marker: (-(marker.score or 0.0), marker.step))
    kept = {*latest, *(marker.step for marker in scored[:keep_best])}
    named = {markers[step].best_step for step in kept}
    return kept | {step for step in named if step is not None and step in markers}


def _flat(tree: Mapping[str, Any], place: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested dicts by dotted name."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _digest(body: Any) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()
