"""Checkpoints are written atomically, and best.ckpt rarely."""

import contextlib
import errno
import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lit_training.errors import CheckpointError
from lit_training.runs import checkpoints
from lit_training.runs.checkpoints import RESUME_STATE, FitCheckpointIO

POINT: dict[str, Any] = {"callbacks": {RESUME_STATE: {"finished": False}}}
"""What makes a checkpoint a resume point."""


def write(path: Path, number: int, content: dict[str, Any] = POINT) -> None:
    weights = torch.full((1000,), float(number))
    FitCheckpointIO().save_checkpoint({"number": number, "weights": weights, **content}, path)


def number(path: Path) -> int:
    return torch.load(path, weights_only=True)["number"]


def test_the_resume_point_before_is_kept_as_previous(tmp_path: Path) -> None:
    for count in range(3):
        write(tmp_path / "new" / "resume" / "last.ckpt", count)
        write(tmp_path / "new" / "last.ckpt", count, {})  # of a callback of the user
    found = {str(path.relative_to(tmp_path / "new")): number(path) for path in tmp_path.rglob("*.ckpt")}
    assert found == {"resume/last.ckpt": 2, "resume/previous.ckpt": 1, "last.ckpt": 2}


class Slow(CheckpointIO):
    """A plugin of the user with its own format."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        time.sleep(0.2)
        Path(path).write_text(str(checkpoint["number"]))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return {"number": int(Path(path).read_text())}

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).rename(f"{path}.old")


def test_checkpoints_of_the_users_plugin_are_complete_before_a_resume_point(tmp_path: Path) -> None:
    checkpoint_io = FitCheckpointIO(AsyncCheckpointIO(Slow()))
    theirs, ours = tmp_path / "theirs.ckpt", tmp_path / "resume" / "last.ckpt"
    checkpoint_io.save_checkpoint({"number": 1}, theirs)
    assert not theirs.exists()
    checkpoint_io.save_checkpoint({"number": 2, **POINT}, ours)
    assert (theirs.read_text(), number(ours)) == ("1", 2)
    checkpoint_io.save_checkpoint({"number": 3}, theirs)
    assert [checkpoint_io.load_checkpoint(path)["number"] for path in (theirs, ours)] == [3, 2]
    checkpoint_io.remove_checkpoint(theirs)
    checkpoint_io.save_checkpoint({"number": 4}, theirs)
    checkpoint_io.teardown()
    assert [path.read_text() for path in sorted(tmp_path.glob("theirs*"))] == ["4", "3"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "torch.save"])
def test_an_error_at_any_point_leaves_a_complete_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write(tmp_path / "last.ckpt", 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(CheckpointError, match=r"cannot write .*last.ckpt \(No space left on device\).*complete"):
            write(tmp_path / "last.ckpt", 2)
    assert [(path.name, number(path)) for path in tmp_path.iterdir()] == [("last.ckpt", 1)]


def test_an_error_between_the_two_renames_leaves_previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "last.ckpt", 1)
    rename = Path.replace

    def stop_at_second(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_second)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write(tmp_path / "last.ckpt", 2)
    assert [(path.name, number(path)) for path in tmp_path.iterdir()] == [("previous.ckpt", 1)]


def test_temporary_files_are_in_the_folder_of_the_target_not_in_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "does not exist"))
    write(tmp_path / "last.ckpt", 1)
    assert number(tmp_path / "last.ckpt") == 1


def test_a_full_disk_is_reported_and_leaves_the_old_file(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, and TMPDIR is on another disk. Lightning's own writer leaves half a file on the full disk."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert small_disk.stat().st_dev != tmp_path.stat().st_dev
    write(small_disk / "last.ckpt", 1)
    enormous = {"number": 2, "weights": torch.zeros(12_000_000)}
    with pytest.raises(
        CheckpointError, match=r"last.ckpt \(No space left on device\): earlier checkpoints are complete"
    ):
        FitCheckpointIO().save_checkpoint(enormous, small_disk / "last.ckpt")
    assert [(path.name, number(path)) for path in small_disk.iterdir()] == [("last.ckpt", 1)]
    write(small_disk / "last.ckpt", 3)
    assert number(small_disk / "last.ckpt") == 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_while_saving_leave_complete_files_if_tmpdir_is_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second writable file system")
    target, draw = tmp_path / "last.ckpt", random.Random(0)
    weights = torch.zeros(5_000_000)
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        monkeypatch.setenv("TMPDIR", elsewhere)
        monkeypatch.setattr(tempfile, "tempdir", None)  # tempfile caches the folder
        assert tempfile.gettempdir() == elsewhere
        began = time.monotonic()
        FitCheckpointIO().save_checkpoint({"number": 0, "weights": weights}, target)
        one_save = time.monotonic() - began
        seen, unfinished = [], 0
        for kill in range(12):
            read_end, write_end = os.pipe()
            child = os.fork()
            if not child:
                try:
                    for count in itertools.count():
                        os.write(write_end, b".")
                        FitCheckpointIO().save_checkpoint({"number": count, "weights": weights}, target)
                finally:
                    os._exit(1)  # an error must not return to pytest in this process
            os.close(write_end)
            for _ in range(2 + kill % 4):  # kill in one of the saves 2 to 5
                os.read(read_end, 1)
            time.sleep(draw.uniform(0, one_save))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            os.close(read_end)
            complete_files = [path for path in (target, tmp_path / "previous.ckpt") if path.exists()]
            assert complete_files
            seen += [(path.name, number(path)) for path in complete_files]
            assert list(Path(elsewhere).iterdir()) == []
            unfinished += bool(list(tmp_path.glob(".*.part")))
            for path in (*tmp_path.glob("*.ckpt"), *tmp_path.glob(".*.part")):
                path.unlink()
    assert unfinished  # some kills interrupted a write
    assert len({count for _, count in seen}) >= 4  # the kills hit several saves


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="choose another folder with --default_root_dir"):
        write(tmp_path / "file" / "last.ckpt", 1)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Run as the user nobody, because root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs seteuid")
def test_a_read_only_folder_is_an_error_and_its_file_stays() -> None:
    """Lightning's own writer ignores the error."""
    with tempfile.TemporaryDirectory() as folder:  # the user nobody cannot enter the folders of pytest
        write(Path(folder, "last.ckpt"), 1)
        Path(folder).chmod(0o555)
        said = r"last.ckpt \(Permission denied\): earlier checkpoints are complete"
        with pytest.raises(CheckpointError, match=said), as_nobody():
            write(Path(folder, "last.ckpt"), 2)
        Path(folder).chmod(0o755)
        assert [(path.name, number(path)) for path in Path(folder).iterdir()] == [("last.ckpt", 1)]


# --- best.ckpt --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that shows the time ``now``."""
    fake_clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: fake_clock.now))
    return fake_clock


def save_best(writer: FitCheckpointIO, folder: Path, number: int) -> None:
    writer.best = folder / "best.ckpt"
    writer.save_checkpoint({"number": number}, folder / "best.ckpt")


def test_the_best_epoch_is_written_only_after_some_seconds(tmp_path: Path, clock: SimpleNamespace) -> None:
    writer, best = FitCheckpointIO(), tmp_path / "best.ckpt"
    save_best(writer, tmp_path, 1)
    assert number(best) == 1
    clock.now += checkpoints.SECONDS_BETWEEN_WRITES
    save_best(writer, tmp_path, 2)
    assert number(best) == 1
    clock.now += 0.1
    save_best(writer, tmp_path, 3)
    assert number(best) == 3


@pytest.mark.parametrize("end", ["flush", "teardown", "another checkpoint", "reading"])
def test_the_waiting_best_epoch_is_written_when_it_is_needed(end: str, tmp_path: Path, clock: SimpleNamespace) -> None:
    writer, best = FitCheckpointIO(), tmp_path / "best.ckpt"
    save_best(writer, tmp_path, 1)
    save_best(writer, tmp_path, 2)
    assert number(best) == 1
    if end == "another checkpoint":
        writer.save_checkpoint({}, tmp_path / "last.ckpt")
    elif end == "reading":
        assert writer.load_checkpoint(best)["number"] == 2
    else:
        getattr(writer, end)()
    assert number(best) == 2
    save_best(writer, tmp_path, 3)
    assert number(best) == 2  # too early after this write


def test_a_waiting_checkpoint_does_not_change_with_the_model(tmp_path: Path, clock: SimpleNamespace) -> None:
    writer, weights = FitCheckpointIO(), torch.zeros(3)
    for _ in range(2):
        writer.save_checkpoint({"weights": weights}, tmp_path / "best.ckpt")
        weights += 1
    writer.flush()
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["weights"]
    assert torch.equal(saved, torch.ones(3))


def test_a_checkpoint_that_could_not_be_written_is_not_written_again(tmp_path: Path) -> None:
    """The error ends the run, and the teardown must not raise a second one."""
    writer = FitCheckpointIO()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError):
        save_best(writer, tmp_path / "file", 1)
    writer.teardown()
