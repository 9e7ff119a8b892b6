"""KuaiRand explicit feedback: short-video impressions joined with their users and videos.

Tasks: click, long_view and like (binary), and play_ratio, the share of the video that was played
(regression, capped). Features are what is known when the video is shown: who, which video, when;
nothing that the impression itself brought about. Photos have no duration, hence no play ratio:
their ``duration_seconds`` and ``play_ratio`` are missing and ``has_duration``, the task's sample
space, is 0.

Splits follow time: the last two days are the test split, the two before them the validation split.
The log streams; the user and video tables are held in memory.
"""

import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.description import (
    ColumnDescription,
    CutSplit,
    SplitDescription,
    TableDescription,
)
from pipeline.data.preparing.recipes.sources import CsvFormat, RawRows, read_raw
from pipeline.data.preparing.recipes.table import by_cut, files_recipe

LOG_FILES = "processed_standard_*.tsv*"
USER_FILES = "user_features_*.csv*"
VIDEO_FILES = "video_features_basic_*.csv*"
VALID_FROM, TEST_FROM = 20220418, 20220420
PLAY_RATIO_CAP = 2.0

USER_CATEGORICAL = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{n}" for n in range(18)),
)
USER_NUMERIC = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_CATEGORICAL = ("author_id", "video_type", "upload_type", "music_id", "music_type")
VIDEO_NUMERIC = ("server_width", "server_height")
_LOG_COLUMNS = ("user_id", "video_id", "date", "hourmin", "play_time_ms", "duration_ms")
_COMPUTED = pa.schema(
    [
        ("hour", pa.int64()),
        ("weekday", pa.int64()),
        ("duration_seconds", pa.float64()),
        ("play_ratio", pa.float64()),
        ("has_duration", pa.int8()),
    ]
)


def kuairand(source: str | Path) -> Recipe:
    """The log, user and video files found anywhere under the folder `source`.

    Raises:
        DatasetError: one of the files is not there, or there are several.
    """
    folder = Path(source)
    log, users, videos = (_find(folder, f) for f in (LOG_FILES, USER_FILES, VIDEO_FILES))
    user_table = SideTable(users, "user_id", (*USER_CATEGORICAL, *USER_NUMERIC))
    video_table = SideTable(videos, "video_id", (*VIDEO_CATEGORICAL, *VIDEO_NUMERIC, "tag"))

    def join(raw: RawRows) -> pa.RecordBatch:
        rows = raw.rows
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        columns |= user_table.look_up(rows.column("user_id"))
        columns |= video_table.look_up(rows.column("video_id"))
        columns |= _computed(raw)
        return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))

    description = _description()
    assert description.split.by_cut is not None
    return files_recipe(
        description,
        [([log], by_cut(description.split.by_cut))],
        derive=join,
        derive_columns=_LOG_COLUMNS,
        derived=pa.schema([*user_table.schema, *video_table.schema, *_COMPUTED]),
        source={"recipe": "kuairand", "side_tables": [users.name, videos.name]},
    )


class SideTable:
    """Rows of a table by key, all text, in memory."""

    def __init__(self, path: Path, key: str, columns: tuple[str, ...]) -> None:
        batches = [raw.rows for raw in read_raw(path, [key, *columns], CsvFormat())]
        table = pa.Table.from_batches(batches).combine_chunks()
        self._keys = table.column(key).combine_chunks()
        self._columns = table.select(list(columns))
        if pc.count_distinct(self._keys).as_py() != len(self._keys):
            raise DatasetError(f"{path}: column {key!r} holds an id twice; remove one of the rows")

    @property
    def schema(self) -> pa.Schema:
        return self._columns.schema

    def look_up(self, keys: pa.Array) -> dict[str, pa.Array]:
        """The columns at these keys; null where the table has no such key."""
        rows = self._columns.take(pc.index_in(keys, value_set=self._keys))
        return {name: rows.column(name).combine_chunks() for name in rows.column_names}


def _computed(raw: RawRows) -> dict[str, pa.Array]:
    played, duration = (_numbers(raw, name) for name in ("play_time_ms", "duration_ms"))
    has_duration = duration > 0
    ratio = np.full(len(duration), np.nan)
    np.divide(played, duration, out=ratio, where=has_duration)
    seconds = np.where(has_duration, duration / 1000, np.nan)
    return {
        "hour": pa.array((_numbers(raw, "hourmin") // 100).astype(np.int64)),
        "weekday": _weekday(raw.rows.column("date")),
        "duration_seconds": pa.array(seconds, from_pandas=True),
        "play_ratio": pa.array(np.minimum(ratio, PLAY_RATIO_CAP), from_pandas=True),
        "has_duration": pa.array(has_duration.astype(np.int8)),
    }


def _weekday(dates: pa.Array) -> pa.Array:
    """0 = Monday, of yyyymmdd text; few distinct dates, so each is parsed once."""
    coded = dates.dictionary_encode()
    days = [
        datetime.datetime.strptime(text, "%Y%m%d").weekday()
        for text in coded.dictionary.to_pylist()
    ]
    return pa.DictionaryArray.from_arrays(
        coded.indices, pa.array(days, pa.int64())
    ).dictionary_decode()


def _numbers(raw: RawRows, name: str) -> npt.NDArray[np.float64]:
    try:
        return raw.rows.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        last = raw.first_row + raw.rows.num_rows
        raise DatasetError(
            f"{raw.file}: rows {raw.first_row + 1} to {last}, column {name!r}: {error}"
        ) from None


def _description() -> TableDescription:
    categorical = ("hour", "weekday", *USER_CATEGORICAL, *VIDEO_CATEGORICAL)
    numeric = ("duration_seconds", *USER_NUMERIC, *VIDEO_NUMERIC)
    return TableDescription(
        name="kuairand",
        separator="\t",
        missing=["", "UNKNOWN"],
        columns=[
            ColumnDescription(name="user_id", role="categorical", type="int64"),
            ColumnDescription(name="video_id", role="categorical", type="int64"),
            *(ColumnDescription(name=name, role="categorical") for name in categorical),
            ColumnDescription(name="tag", role="categorical", separator=","),
            *(ColumnDescription(name=name, role="numeric") for name in numeric),
            ColumnDescription(name="date", role="key"),
            ColumnDescription(name="click", role="label", source="is_click"),
            ColumnDescription(name="long_view", role="label"),
            ColumnDescription(name="like", role="label", source="label", equals=1),
            ColumnDescription(name="play_ratio", role="label"),
            ColumnDescription(name="has_duration", role="space"),
        ],
        tasks=[
            TaskConfig(name="click"),
            TaskConfig(name="long_view"),
            TaskConfig(name="like"),
            TaskConfig(name="play_ratio", loss="squared_error", space="has_duration"),
        ],
        split=SplitDescription(
            by_cut=CutSplit(column="date", valid_from=VALID_FROM, test_from=TEST_FROM)
        ),
    )


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(p for p in folder.rglob(pattern) if p.is_file())
    if len(found) != 1:
        listed = ", ".join(str(p) for p in found) or "none"
        raise DatasetError(
            f"{folder}: expected one file {pattern} in it or below, found {listed}; name the "
            "folder of the KuaiRand files with --source"
        )
    return found[0]
