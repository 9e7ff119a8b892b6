"""The same in an object store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server, behind_proxy, s3_server
from saved_states import SmallState, checkpoints_in, same

from pipeline.checkpoint.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server, behind_proxy(server) as flaky:
        yield flaky


def folders(s3: S3Server, run: str) -> set[str]:
    return {path.partition("/")[0] for path in s3.files(run) if "/" in path}


def test_saved_kept_verified_and_loaded(s3: S3Server) -> None:
    location = s3.uri("a")
    checkpoints = checkpoints_in(location, keep_last=2, keep_best=1)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2)):
        checkpoints.save(SmallState(step), step=step, score=score)
    checkpoints.close()
    assert folders(s3, "a") == {"step-00000002", "step-00000003", "step-00000004"}
    assert s3.proxy is not None
    puts = [r for r in s3.proxy.requests if "step-00000004" in r and r.startswith(("PUT", "POST"))]
    assert "marker.json" in puts[-1]
    assert not any(
        "marker.json" in request
        for request in puts[:-1]
        if "uploadId" not in request and "uploads" not in request
    )
    again = checkpoints_in(location)
    saved = again.newest()
    assert saved is not None
    assert saved.location == s3.uri("a/step-00000004")
    state = SmallState(0)
    again.load(saved, state)
    assert same(state.flat(), SmallState(4).flat())


def test_leftovers_go_and_damage_is_passed_over(s3: S3Server, tmp_path: Path) -> None:
    checkpoints = checkpoints_in(s3.uri("b"), keep_last=4)
    for step in (1, 2, 3, 4):
        checkpoints.save(SmallState(step), step=step)
    checkpoints.close()
    files = s3.filesystem
    files.delete_file(f"{BUCKET}/b/step-00000004/marker.json")
    files.delete_file(f"{BUCKET}/b/step-00000003/own-00000.safetensors")
    with files.open_output_stream(f"{BUCKET}/b/step-00000002/tensors-00000.bin") as file:
        file.write(b"short")
    again = checkpoints_in(s3.uri("b"))
    assert folders(s3, "b") == {"step-00000001", "step-00000002", "step-00000003"}
    assert again.newest().step == 1  # type: ignore[union-attr]
    assert [reason.partition(": ")[2] for reason in again.skipped] == [
        "own-00000.safetensors is missing",
        "tensors-00000.bin has 5 bytes instead of 1,888",
    ]
    # Messages name the place without options or credentials.
    assert again.skipped[0].startswith(f"s3://{BUCKET}/b/step-00000003: ")


@pytest.mark.parametrize("file", ["tensors-00000.bin", "marker.json"])
def test_a_store_that_refuses_leaves_the_one_before(s3: S3Server, file: str) -> None:
    assert s3.proxy is not None
    run = f"c-{file[:6]}"
    checkpoints = checkpoints_in(s3.uri(run))
    checkpoints.save(SmallState(1), step=1)
    checkpoints.wait()
    s3.proxy.answer(403, times=100, matching=rf"^(PUT|POST) .*step-00000002/{file}")
    checkpoints.save(SmallState(2), step=2)
    with pytest.raises(CheckpointError, match=r"step-00000002 .*access denied"):
        checkpoints.wait()
    s3.proxy.behave()
    assert folders(s3, run) == {"step-00000001"}
    checkpoints.save(SmallState(3), step=3)
    checkpoints.wait()
    assert checkpoints.newest().step == 3  # type: ignore[union-attr]


def test_a_store_that_cannot_be_read_is_no_damage(s3: S3Server) -> None:
    assert s3.proxy is not None
    checkpoints = checkpoints_in(s3.uri("d"))
    checkpoints.save(SmallState(1), step=1)
    checkpoints.wait()
    s3.proxy.answer(403, times=100, matching=r"tensors-00000\.bin")
    with pytest.raises(CheckpointError, match="access denied"):
        checkpoints.newest()
    s3.proxy.behave()
    assert checkpoints.newest().step == 1  # type: ignore[union-attr]
