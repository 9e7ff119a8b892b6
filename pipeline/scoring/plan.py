"""What a job is: its pieces of work, and by what it is known when it is resumed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config.scoring import ScoringConfig
from pipeline.scoring.inputs import Inputs

# Of larger files of an artifact, which are weights, name and size are enough to tell versions apart
# that are told apart by the text files beside them.
_WHOLE_BYTES = 1 << 20
_NOT_OF_THE_OUTPUT = {"actors", "batch_rows"}


@dataclass(frozen=True)
class WorkItem:
    """A run of row groups of one file: what one call of an actor scores.

    Attributes:
        number: from 0, over all files.
        path, size: the file, as it was listed.
        first_group, stop_group: its row groups.
        first_row: position of the first of them in the file.
        rows: how many there are.
    """

    number: int
    path: str
    size: int
    first_group: int
    stop_group: int
    first_row: int
    rows: int

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "WorkItem":
        return WorkItem(**json.loads(text))


def plan_items(inputs: Inputs, rows_per_file: int) -> list[WorkItem]:
    """Cuts files where their row groups would exceed so many rows; empty ones have no part."""
    items: list[WorkItem] = []
    for file in inputs.files:
        first_row = 0
        for first, stop, rows in _runs(file.group_rows, rows_per_file):
            if rows:
                items.append(
                    WorkItem(len(items), file.path, file.size, first, stop, first_row, rows)
                )
            first_row += rows
    return items


def _runs(group_rows: tuple[int, ...], limit: int) -> Iterator[tuple[int, int, int]]:
    """(first, stop, rows) of runs of row groups with at most `limit` rows, or a single one."""
    first, rows = 0, 0
    for group, count in enumerate(group_rows):
        if group > first and rows + count > limit:
            yield first, group, rows
            first, rows = group, 0
        rows += count
    if first < len(group_rows):
        yield first, len(group_rows), rows


@dataclass(frozen=True)
class JobIdentity:
    """What must be the same for a job to go on where another one stopped.

    Attributes:
        model: URI of the version, by number.
        artifact: digest of its files.
        folder: of the input.
        files: by path, (bytes, time of change, rows).
        options: those that shape the output.
    """

    model: str
    artifact: str
    folder: str
    files: Mapping[str, tuple[int, int, int]]
    options: Mapping[str, Any]

    @staticmethod
    def of(model: str, artifact: Path, inputs: Inputs, config: ScoringConfig) -> "JobIdentity":
        files = {f.path: (f.size, f.modified, f.rows) for f in inputs.files}
        options = config.model_dump(mode="json", exclude=_NOT_OF_THE_OUTPUT)
        return JobIdentity(model, digest_of(artifact), inputs.store.root, files, options)

    @property
    def token(self) -> str:
        """Eight hexadecimal digits, part of the names of output files."""
        text = json.dumps(self.tree(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def tree(self) -> dict[str, Any]:
        """As plain JSON."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return tree

    @staticmethod
    def parse(tree: Mapping[str, Any]) -> "JobIdentity":
        files = {path: tuple(values) for path, values in tree["files"].items()}
        return JobIdentity(**{**tree, "files": files})

    def differences(self, earlier: "JobIdentity") -> list[str]:
        """In words, how this job differs from an earlier one."""
        found = []
        if self.model != earlier.model:
            found.append(f"the model was {earlier.model}, now it is {self.model}")
        elif self.artifact != earlier.artifact:
            found.append(f"{self.model} is another artifact than it was")
        for name, value in self.options.items():
            before = earlier.options.get(name)
            if value != before:
                found.append(f"scoring.{name} was {before}, now it is {value}")
        if self.folder != earlier.folder:
            found.append(f"the input was {earlier.folder}, now it is {self.folder}")
        elif self.files != earlier.files:
            found.append(_changed_files(self.files, earlier.files))
        return found


def _changed_files(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    changed = sorted(path for path in {*now, *before} if now.get(path) != before.get(path))
    path = changed[0]
    how = "is new" if path not in before else "is gone" if path not in now else "has changed"
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"input file {path} {how}{more}"


def digest_of(artifact: Path) -> str:
    """Digest of a folder: names and sizes of its files, and the contents of the small ones."""
    digest = hashlib.sha256()
    for path in sorted(path for path in artifact.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(artifact).as_posix()} {size}\n".encode())
        if size <= _WHOLE_BYTES:
            digest.update(path.read_bytes())
    return digest.hexdigest()
