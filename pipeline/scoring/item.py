"""One piece of work: reads row groups, scores their rows, writes and records what came out.

B rows of a batch, T tasks.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.scoring import ScoringConfig
from pipeline.data.faults import OutageError
from pipeline.data.remote import RetryPolicy
from pipeline.data.shard_files import DECODE_ERRORS
from pipeline.data.storage import Store
from pipeline.registry.columns import RowError
from pipeline.registry.scorer import RowScorer
from pipeline.scoring.errors import ScoringError
from pipeline.scoring.inputs import kept_columns, open_parquet, score_columns
from pipeline.scoring.output_files import OutputFile, OutputFiles, put
from pipeline.scoring.plan import WorkItem

RECORDS = "_scoring"
# Decoded, all columns; a larger row group is fetched by the megabyte instead of whole.
_HUGE_BYTES = 256 << 20
# A piece of work that was begun so often, and never ended, is not tried again.
_ATTEMPTS = 3


@dataclass(frozen=True)
class ScoringTask:
    """What all pieces of a job share. Small when pickled.

    Attributes:
        source: store of the input; output: where output files are being written.
        config: columns, files, batches.
        token: of the job.
        model: URI of the version, by number.
        retry: for reads of a remote store.
        start: names this start of the job.
    """

    source: Store
    output: Store
    config: ScoringConfig
    token: str
    model: str
    retry: RetryPolicy
    start: str


@dataclass(frozen=True)
class ItemRecord:
    """A piece of work that is done: what it read and the files it left."""

    item: WorkItem
    files: tuple[OutputFile, ...]

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "ItemRecord":
        tree: dict[str, Any] = json.loads(text)
        files = tuple(OutputFile(**file) for file in tree["files"])
        return ItemRecord(WorkItem(**tree["item"]), files)


def record_name(number: int) -> str:
    """Where a piece of work is recorded, relative to the output."""
    return f"{RECORDS}/item-{number:06d}.json"


def note_attempt(task: ScoringTask, item: WorkItem) -> None:
    """Leaves a mark that an actor has begun a piece of work, where it outlives the actor.

    Raises:
        ScoringError: it was begun several times since the job was started: it kills the actors.
        OSError: the output cannot be written.
    """
    folder = f"{RECORDS}/begun-{task.start}/{item.number:06d}"
    before = len(task.output.names(folder))
    if before >= _ATTEMPTS:
        raise ScoringError(
            f"{task.source.name_of(item.path)}: {before} actors died while they scored rows "
            f"{item.first_row} to {item.first_row + item.rows - 1}, as they do when memory runs "
            "out; lower scoring.batch_rows or scoring.actors, and go on with --resume"
        )
    put(task.output, f"{folder}/{before}", b"")


def score_item(scorer: RowScorer, task: ScoringTask, item: WorkItem) -> ItemRecord:
    """Scores one piece of work; its record is written after its files.

    Doing it again leaves the same files under the same names.

    Raises:
        ScoringError: rows cannot be read or scored; names file, column and row.
        OutageError: the store does not answer.
        OSError: the output cannot be written.
    """
    place = task.source.name_of(item.path)
    metadata = {
        "model": task.model,
        "input": item.path,
        "input_row_groups": f"{item.first_group}:{item.stop_group}",
        "input_first_row": str(item.first_row),
    }
    output = OutputFiles(task.output, item, task.token, task.config, metadata)
    done = 0
    for rows, kept in _batches(scorer, task, item):
        try:
            output.add(_scored(scorer, task, rows, kept))
        except RowError as error:
            raise ScoringError(_at_row(error, place, item.first_row + done)) from None
        except ScoringError as error:
            raise ScoringError(f"{place}: {error}") from None
        done += rows.num_rows
    if done != item.rows:
        raise _changed(place, f"{done:,} rows where its footer had {item.rows:,}")
    try:
        files = tuple(output.finish())
    except ScoringError as error:
        raise ScoringError(f"{place}: {error}") from None
    stored = sum(file.rows for file in files)
    if stored != item.rows:
        raise ScoringError(
            f"{place}: {item.rows:,} rows were read and {stored:,} are in {len(files)} output "
            "file(s); the output's store is at fault, try again with --resume"
        )
    record = ItemRecord(item, files)
    put(task.output, record_name(item.number), record.text().encode())
    return record


def _scored(scorer: RowScorer, task: ScoringTask, rows: pa.Table, kept: pa.Schema) -> pa.Table:
    """The kept columns in the file's own types, and a column of scores for every task."""
    scores_BT = scorer.score_table(rows)
    arrays = []
    for field in kept:
        column = rows[field.name]
        arrays.append(column if column.type == field.type else column.cast(field.type))
    arrays += [pa.array(scores_B) for scores_B in scores_BT.T]
    return pa.Table.from_arrays(arrays, [*kept.names, *score_columns(scorer, task.config)])


def _batches(
    scorer: RowScorer, task: ScoringTask, item: WorkItem
) -> Iterator[tuple[pa.Table, pa.Schema]]:
    """Rows of the item with the columns that are needed, and the schema of those to keep."""
    place = task.source.name_of(item.path)
    groups = range(item.first_group, item.stop_group)
    with open_parquet(task.source, item.path, task.retry) as opened:
        schema, footer = opened.schema_arrow, opened.metadata
    found = [file.size for file in task.source.files(item.path)]
    if found != [item.size] or footer.num_row_groups < item.stop_group:
        raise _changed(place, f"{sum(found):,} bytes where it had {item.size:,}")
    huge = max(footer.row_group(g).total_byte_size for g in groups) > _HUGE_BYTES
    kept = pa.schema([schema.field(name) for name in kept_columns(schema, task.config)])
    columns = list(dict.fromkeys([*scorer.schema.names, *kept.names]))
    # Of a dictionary each distinct text is looked up once.
    strings = [n for n in scorer.schema.names if pa.types.is_string(schema.field(n).type)]
    with open_parquet(task.source, item.path, task.retry, strings, huge) as file:
        for batch in _decoded(file, groups, columns, task.config.batch_rows, place):
            yield pa.Table.from_batches([batch]), kept


def _decoded(
    file: pq.ParquetFile, groups: range, columns: list[str], rows: int, place: str
) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(rows, list(groups), columns, use_threads=False)
    except OutageError:
        raise
    except DECODE_ERRORS as error:
        raise ScoringError(
            f"{place}: row groups {groups.start} to {groups.stop - 1} cannot be decoded ({error}); "
            "restore the file, or leave it out with a pattern in --input"
        ) from error


def _at_row(error: RowError, place: str, first: int) -> str:
    row = "" if error.row is None else f"row {first + error.row}, "
    return (
        f"{place}: {row}column {error.field!r} {error.problem}; correct the column, or leave the "
        "file out with a pattern in --input"
    )


def _changed(place: str, how: str) -> ScoringError:
    return ScoringError(
        f"{place}: was changed while the job ran ({how}); start again with --overwrite, or score "
        "a copy that stays as it is"
    )
