"""The place of the output: nothing of it is seen before it is complete, and a job that was stopped
finds again what it had done.

Where the file system can rename a folder (local, HDFS), files are written to a folder beside the
output, `_NAME.unfinished`, which becomes the output by one rename. In an object store, where a
rename is a copy, they are written where they stay, and the output is complete, and an earlier one
replaced, when `_manifest.json` is put. Names of output files hold a token of the job, so the files
of two jobs are never mistaken for each other.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pyarrow import fs

from pipeline.checkpoint.files import FileRecord, fault_of
from pipeline.data.storage import Store, open_store
from pipeline.scoring.errors import ScoringError
from pipeline.scoring.item import RECORDS, ItemRecord, record_name
from pipeline.scoring.output_files import OutputFile, put
from pipeline.scoring.plan import JobIdentity, WorkItem

MANIFEST = "_manifest.json"
FORMAT_VERSION = 1
Mode = Literal["new", "resume", "overwrite"]
_JOB = f"{RECORDS}/job.json"
_OURS = re.compile(r"(^|/)(\.[^/]*\.partial|[^/]*-\d{6}-\d{3}-[0-9a-f]{8}\.parquet)$")
_RENAMING = ("local", "hdfs")
_REQUESTS = 16


class OutputPlace:
    """Where a job's output goes.

    Attributes:
        final: the folder that was asked for.
        working: where files are written: the same folder, or the one that is renamed to it.
    """

    def __init__(self, location: str) -> None:
        self.final = open_store(location)
        self.renames = self.final.filesystem.type_name in _RENAMING
        self.working = self._beside("_", ".unfinished") if self.renames else self.final

    def begin(self, job: JobIdentity, mode: Mode) -> bool:
        """Claims the place for a job; False where this very job is complete already.

        Raises:
            ScoringError: what is there does not allow it.
        """
        complete, unfinished = self._job_of(MANIFEST), self._job_of(_JOB)
        if complete is None and self.final.holds_files() and (self.renames or not unfinished):
            raise ScoringError(
                f"--output {self.final.location}: holds files that are no output of this job; give "
                "an empty or new folder"
            )
        if mode == "new" and (complete or unfinished):
            raise ScoringError(self._taken(complete, unfinished, job))
        if mode == "resume":
            earlier = unfinished or complete
            differences = job.differences(earlier) if earlier else []
            if differences:
                raise ScoringError(self._other_job(differences, unfinished is not None, earlier))
            if complete == job:
                self._verify()
                self._forget(self.working)
                self._forget(self.final)
                return False
        if mode == "overwrite":
            self._forget(self.working)
        if mode == "overwrite" or not unfinished:
            text = json.dumps({"format_version": FORMAT_VERSION, "job": job.tree()}, indent=1)
            put(self.working, _JOB, text.encode())
        return True

    def done(self, items: Sequence[WorkItem]) -> dict[int, ItemRecord]:
        """Records of the pieces of work that are done and whose files are as they were written."""
        present = set(self.working.names(RECORDS))
        asked = [i for i in items if Path(record_name(i.number)).name in present]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            records = pool.map(self._sound_record, asked)
        return {record.item.number: record for record in records if record is not None}

    def publish(self, manifest: Mapping[str, Any]) -> None:
        """Makes the output appear; what it replaces, and what is left of the work, is removed.

        Raises:
            ScoringError: another job has put an output there meanwhile.
            OSError: the store refuses.
        """
        put(self.working, MANIFEST, json.dumps(manifest, indent=1).encode())
        self._sweep({str(file["name"]) for file in manifest["outputs"]})
        if self.renames:
            self._rename()
        self._forget(self.final)

    def _rename(self) -> None:
        move, target = self.final.filesystem.move, self.final.root
        if self.final.is_local:
            _sync(Path(self.working.root))
        replaced = self._beside("_", ".replaced")
        with self.final.explaining(""):
            if self.final.exists(MANIFEST):
                _remove(replaced)
                move(target, replaced.root)
            try:
                move(self.working.root, target)
            except OSError as error:
                raise ScoringError(
                    f"--output {self.final.location}: cannot become the output ({error}); make it "
                    "an empty or absent folder and go on with --resume: nothing is lost"
                ) from error
            if self.final.is_local:
                _sync_one(Path(target).parent)
        _remove(replaced)

    def _sweep(self, wanted: set[str]) -> None:
        """Removes files of jobs like this one that are not wanted: unfinished, or replaced."""
        selector = fs.FileSelector(self.working.root, recursive=True)
        with self.working.explaining(""):
            infos = self.working.filesystem.get_file_info(selector)
        skip = len(self.working.root.strip("/")) + 1
        names = [info.path.lstrip("/")[skip:] for info in infos if info.is_file]
        self.working.remove_files([n for n in names if _OURS.search(n) and n not in wanted])

    def _forget(self, store: Store) -> None:
        """Removes the records of work; with a folder for the work alone, all of that."""
        if store is self.working and self.renames:
            _remove(store)
        else:
            _remove(Store(store.name_of(RECORDS), store.filesystem, f"{store.root}/{RECORDS}"))

    def _verify(self) -> None:
        """Raises ScoringError where a file of a complete output is not as it was written."""
        tree = json.loads(self.final.read_text(MANIFEST))
        files = [OutputFile(f["name"], f["rows"], f["size"], f["crc32"]) for f in tree["outputs"]]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            faults = [f for f in pool.map(lambda f: _fault(self.final, f), files) if f is not None]
        if faults:
            raise ScoringError(
                f"--output {self.final.location}: is complete, but {faults[0]}; score again with "
                "--overwrite"
            )

    def _sound_record(self, item: WorkItem) -> ItemRecord | None:
        try:
            record = ItemRecord.parse(self.working.read_text(record_name(item.number)))
        except (ValueError, KeyError, TypeError):
            return None
        sound = record.item == item and all(_fault(self.working, f) is None for f in record.files)
        return record if sound else None

    def _job_of(self, name: str) -> JobIdentity | None:
        store = self.final if name == MANIFEST else self.working
        try:
            tree = json.loads(store.read_text(name))
            version, job = tree["format_version"], tree["job"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ScoringError(
                f"{store.name_of(name)}: cannot be read ({error}); remove the folder, or give "
                "another --output"
            ) from None
        if version != FORMAT_VERSION:
            raise ScoringError(
                f"{store.name_of(name)}: has format {version}, this code reads {FORMAT_VERSION}; "
                "give another --output"
            )
        return JobIdentity.parse(job)

    def _taken(
        self, complete: JobIdentity | None, unfinished: JobIdentity | None, job: JobIdentity
    ) -> str:
        where = f"--output {self.final.location}"
        if unfinished is not None:
            same = not job.differences(unfinished)
            goes_on = "--resume goes on with it, " if same else ""
            return (
                f"{where}: an unfinished job with {unfinished.model} is there; {goes_on}"
                "--overwrite discards it, or give another --output"
            )
        assert complete is not None
        return (
            f"{where}: is complete, with scores of {complete.model}; --overwrite replaces it when "
            "the new one is complete, or give another --output"
        )

    def _other_job(
        self, differences: list[str], is_unfinished: bool, earlier: JobIdentity | None
    ) -> str:
        assert earlier is not None
        state = "an unfinished" if is_unfinished else "a complete"
        return (
            f"--output {self.final.location}: belongs to {state} job that is not this one: "
            f"{'; '.join(differences)}. Undo that (for the model: --model {earlier.model}), "
            "give another --output, or start anew with --overwrite"
        )

    def _beside(self, before: str, after: str) -> Store:
        parent, _, name = self.final.root.rpartition("/")
        if not name:
            raise ScoringError(f"--output {self.final.location}: give a folder below the root")
        folder, _, shown = self.final.location.rstrip("/").rpartition("/")
        location = f"{folder}/{before}{shown}{after}" if folder else f"{before}{shown}{after}"
        return Store(location, self.final.filesystem, f"{parent}/{before}{name}{after}")


def _fault(store: Store, file: OutputFile) -> str | None:
    return fault_of(store, FileRecord(file.name, file.size, file.crc32))


def _remove(folder: Store) -> None:
    with folder.explaining(""), suppress(FileNotFoundError):
        folder.filesystem.delete_dir(folder.root)


def _sync(folder: Path) -> None:
    """Has the disk know every file and folder in a folder by name."""
    for inner, _, _ in os.walk(folder):
        _sync_one(Path(inner))


def _sync_one(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
