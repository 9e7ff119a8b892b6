"""The record of a run on disk."""

import json
import math
import resource

import pytest

from pipeline.registry.metric_record import MetricRecord, read_points
from pipeline.registry.uris import TrackingError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def written(path, steps=3):
    record = MetricRecord(path)
    for step in range(steps):
        record.append_metrics({"train/loss": 1 / (step + 3), "epoch": 0.0}, step)
    record.close()
    return path.read_bytes()


def test_values_come_back_bit_for_bit_and_in_order(path):
    record = MetricRecord(path)
    values = [0.1 + 0.2, 1e-310, -0.0, 1e308, math.inf, -math.inf, float(2**53 + 2)]
    for step, value in enumerate(values):
        record.append_metrics({"valid/click?(7d)/auc": value}, step)
    record.append_metrics({"train/loss": math.nan}, 7)
    points = record.points()
    assert [p.value.hex() for p in points[:-1]] == [value.hex() for value in values]
    assert math.isnan(points[-1].value)
    assert [p.step for p in points] == list(range(8))
    assert points[0].key == "valid/click__7d_/auc"
    assert str(read_points(path.parent)) == str(points)  # As text: NaN is not equal to itself.


def test_a_step_posted_again_is_left_out_also_after_a_restart(path):
    before = written(path)
    record = MetricRecord(path)
    for step in range(3):
        record.append_metrics({"train/loss": 5.0, "epoch": 0.0}, step)
    assert path.read_bytes() == before
    record.append_metrics({"train/loss": 5.0, "valid/auc": 0.5}, 2)
    assert [(p.key, p.step) for p in record.points()[6:]] == [("valid/auc", 2)]


def test_a_line_cut_short_by_a_crash_is_dropped(path):
    whole = written(path)
    start = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        record = MetricRecord(path)
        assert [p.step for p in record.points()] == [0, 0, 1, 1]
        record.append_metrics({"train/loss": 9.0}, 2)
        record.close()
        assert MetricRecord(path).points()[-1].value == 9.0


def test_a_tail_of_zeros_as_power_cuts_leave_it_is_dropped(path):
    whole = written(path)
    path.write_bytes(whole + b"\0" * 4096)
    MetricRecord(path).close()
    assert path.read_bytes() == whole


def test_damage_inside_is_named_and_nothing_is_changed(path):
    lines = written(path).splitlines(keepends=True)
    lines[1] = lines[1][:-5] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(TrackingError, match=r"metrics\.jsonl: line 2 is damaged"):
        MetricRecord(path)
    assert path.read_bytes() == b"".join(lines)


def test_one_writer_at_a_time(path):
    record = MetricRecord(path)
    with pytest.raises(TrackingError, match="in use: another process"):
        MetricRecord(path)
    record.close()
    MetricRecord(path).close()


def test_a_full_disk_is_named_and_leaves_whole_lines(path):
    before = written(path)
    record = MetricRecord(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The next line fits in part only, as on a disk that runs full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(TrackingError, match=r"metrics\.jsonl: cannot be written .*--resume"):
            record.append_metrics({"train/loss": 1.0}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    record.append_metrics({"train/loss": 1.0}, 3)
    assert record.points()[-1].step == 3


def test_tags_files_and_statuses_stand_in_order(path):
    record = MetricRecord(path)
    record.append(tags={"a": "ü"})
    record.append_metrics({"x": 1.0}, 0)
    record.append(artifact="outbox/files/1/a.png", place="figures")
    record.append(status="RUNNING")
    middle = record.read()[1][1]
    assert [e.status for e, _ in record.read(middle)] == ["", "RUNNING"]
    assert [len(record.read(0, limit)) for limit in (1, 2, None)] == [1, 2, 4]
    assert record.resumes == 1
    record.close()
    assert MetricRecord(path).resumes == 1
    assert json.loads(path.read_text().splitlines()[1]).keys() == {"timestamp", "step", "metrics"}
