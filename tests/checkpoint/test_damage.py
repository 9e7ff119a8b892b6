"""Bad checkpoints: none loads silently wrong; the one before is taken, and the reason is said."""

import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from saved_states import SmallState, checkpoints_in, same

from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.marker import Marker
from pipeline.checkpoint.trees import decode_tree

pytestmark = pytest.mark.usefixtures("group")

TRIALS = 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, group: None) -> Path:
    """Three checkpoints, of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = checkpoints_in(folder, keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(SmallState(step), step=step)
    checkpoints.close()
    return folder


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 50))):
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def lengthen(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 9)))


def blank(path: Path, draw: random.Random) -> None:
    """A block that never reached the disk."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.randrange(8, 512))
    if not any(content[start:stop]):
        content[start] = 1
        start += 1
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)


def exchange(path: Path, draw: random.Random) -> None:
    """The file of another checkpoint, of the same size or not."""
    shutil.copy(path.parent.parent / "step-00000001" / path.name, path)


def damage(folder: Path, number: int) -> str:
    """Does one thing to the newest checkpoint; returns what."""
    draw = random.Random(number)
    newest = folder / "step-00000003"
    names = sorted(path.name for path in newest.iterdir())
    # The files differ in what may be wrong with them, not in how likely that is.
    kinds = (flip, flip, flip, truncate, truncate, remove, lengthen, blank, exchange)
    kind, name = kinds[number % len(kinds)], names[draw.randrange(len(names))]
    before = (newest / name).read_bytes()
    kind(newest / name, draw)
    if (newest / name).exists() and (newest / name).read_bytes() == before:
        flip(newest / name, draw)
    return f"{kind.__name__} of {name}"


def test_every_one_of_many_bad_checkpoints_is_found(saved: Path, tmp_path: Path) -> None:
    expected = SmallState(2).flat()
    for number in range(TRIALS):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        checkpoints = checkpoints_in(folder)
        # As it goes wrong in the life of a run: some before it starts, some after it looked.
        what = damage(folder, number)
        if number % 2 and "remove of marker" not in what:
            checkpoints = checkpoints_in(folder)
        found = checkpoints.newest()
        assert found is not None, what
        assert found.step == 2, what
        (reason,) = checkpoints.skipped
        assert reason.startswith(str(folder / "step-00000003")), what
        assert what.rpartition(" ")[2] in reason, (what, reason)
        state = SmallState(77)
        checkpoints.load(found, state)
        assert same(state.flat(), expected), what
        shutil.rmtree(folder)


def test_a_bad_one_is_passed_over_again_and_again_until_a_save_replaces_it(
    saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    (folder / "step-00000003" / "index.json").unlink()
    (folder / "step-00000002" / "tensors-00000.bin").write_bytes(b"")
    checkpoints = checkpoints_in(folder)
    for _ in range(2):
        assert checkpoints.newest().step == 1  # type: ignore[union-attr]
        assert [reason.rpartition("/")[2] for reason in checkpoints.skipped] == [
            "step-00000003: index.json is missing",
            "step-00000002: tensors-00000.bin has 0 bytes instead of 1,888",
        ]
    assert checkpoints.at(3) is None
    assert checkpoints.at(4) is None
    checkpoints.save(SmallState(33), step=3)
    checkpoints.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000003"]
    state = SmallState(0)
    checkpoints.load(checkpoints.newest(), state)  # type: ignore[arg-type]
    assert same(state.flat(), SmallState(33).flat())


def test_none_left_is_none_with_all_the_reasons(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    for path in folder.glob("step-*/shared.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    checkpoints = checkpoints_in(folder)
    assert checkpoints.newest() is None
    assert len(checkpoints.skipped) == 3


def test_a_marker_of_another_checkpoint_is_no_marker(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "step-00000003", folder / "step-00000009")
    checkpoints = checkpoints_in(folder)
    assert checkpoints.newest().step == 3  # type: ignore[union-attr]
    assert "belongs to another checkpoint (of step 3)" in checkpoints.skipped[0]


def test_any_changed_byte_of_a_marker_is_found(saved: Path) -> None:
    text = (saved / "step-00000003" / "marker.json").read_bytes()
    whole = Marker.from_text(text.decode(), "here")
    assert whole.to_text().encode() == text
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1 + place % 255
        with pytest.raises(ValueError):
            Marker.from_text(changed.decode(), "here")
    for more in (text + b"\n", b" " + text, text + b"{}", b"", b"[]", b"null"):
        with pytest.raises(ValueError):
            Marker.from_text(more.decode(), "here")


def test_a_store_that_may_not_be_read_is_an_error_and_no_bad_checkpoint(
    saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    target = folder / "step-00000003" / "index.json"
    target.unlink()
    target.mkdir()  # opening it fails, for a reason that says nothing about the file
    checkpoints = checkpoints_in(folder)
    with pytest.raises(CheckpointError, match=r"verifying .*index\.json"):
        checkpoints.newest()
    assert (folder / "step-00000003" / "marker.json").exists()


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["own-00000.safetensors", "shared.safetensors", "index.json"])
def test_no_pickle_is_ever_executed(saved: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    proof = tmp_path / "executed"
    newest = folder / "step-00000003"
    payloads = [pickle.dumps(Planted(proof))]
    torch.save(Planted(proof), tmp_path / "planted.pt")
    payloads.append((tmp_path / "planted.pt").read_bytes())
    for payload in payloads:
        # Where torch itself would look, and in the place of a file of ours, with the sizes and
        # checksums of the marker made to match.
        (newest / ".metadata").write_bytes(payload)
        (newest / name).write_bytes(payload)
        checkpoints = checkpoints_in(folder)
        assert checkpoints.newest().step == 2  # type: ignore[union-attr]
        forge_marker(newest)
        checkpoints = checkpoints_in(folder)
        found = checkpoints.newest()
        assert found is not None
        assert found.step == 3
        with pytest.raises(CheckpointError):
            checkpoints.load(found, SmallState(0))
    assert not proof.exists()
    pickle.loads(payloads[0])
    assert proof.exists(), "the plant does nothing"
    with pytest.raises(ValueError, match="not a plain tree"):
        decode_tree(payloads[0])


def test_an_index_cannot_point_outside_its_folder(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    newest = folder / "step-00000003"
    index = newest / "index.json"
    index.write_text(index.read_text().replace("tensors-", "../step-00000001/tensors-"))
    forge_marker(newest)
    checkpoints = checkpoints_in(folder)
    with pytest.raises(CheckpointError, match="outside"):
        checkpoints.load(checkpoints.newest(), SmallState(0))  # type: ignore[arg-type]


def forge_marker(folder: Path) -> None:
    """Makes the marker fit the files."""
    import dataclasses
    import zlib

    from pipeline.checkpoint.files import FileRecord

    marker = Marker.from_text((folder / "marker.json").read_text(), "here")
    records = []
    for record in marker.files:
        content = (folder / record.name).read_bytes()
        records.append(FileRecord(record.name, len(content), f"{zlib.crc32(content):08x}"))
    forged = dataclasses.replace(marker, files=tuple(records))
    (folder / "marker.json").write_text(forged.to_text())
