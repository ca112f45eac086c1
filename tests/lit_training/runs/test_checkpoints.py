import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_training.errors import CheckpointError
from lit_training.runs.checkpoints import AtomicCheckpointIO, find


def write(path: Path, number: int) -> None:
    AtomicCheckpointIO().save_checkpoint({"number": number, "weights": torch.full((1000,), float(number))}, path)


def number(path: Path) -> int:
    return torch.load(path, weights_only=True)["number"]


def test_the_one_before_last_is_kept_as_previous(tmp_path: Path) -> None:
    for count in range(3):
        write(tmp_path / "new" / "last.ckpt", count)
        write(tmp_path / "new" / "best.ckpt", count)
    found = {path.name: number(path) for path in (tmp_path / "new").iterdir()}
    assert found == {"last.ckpt": 2, "previous.ckpt": 1, "best.ckpt": 2}


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "torch.save"])
def test_an_error_at_any_point_leaves_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write(tmp_path / "last.ckpt", 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(CheckpointError, match=r"cannot write .*last.ckpt \(No space left on device\).*whole"):
            write(tmp_path / "last.ckpt", 2)
    assert [(path.name, number(path)) for path in tmp_path.iterdir()] == [("last.ckpt", 1)]


def test_the_rotation_stopped_between_its_two_renames_leaves_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_temporary_files_lie_beside_the_target_not_in_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "is not there"))
    write(tmp_path / "last.ckpt", 1)
    assert number(tmp_path / "last.ckpt") == 1


def test_a_disk_that_is_full_leaves_the_old_file_and_says_so(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, with TMPDIR elsewhere: Lightning's own writer leaves half a file there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert small_disk.stat().st_dev != tmp_path.stat().st_dev
    write(small_disk / "last.ckpt", 1)
    enormous = {"number": 2, "weights": torch.zeros(12_000_000)}
    with pytest.raises(CheckpointError, match=r"last.ckpt \(No space left on device\): what was there before is whole"):
        AtomicCheckpointIO().save_checkpoint(enormous, small_disk / "last.ckpt")
    assert [(path.name, number(path)) for path in small_disk.iterdir()] == [("last.ckpt", 1)]
    write(small_disk / "last.ckpt", 3)
    assert number(small_disk / "last.ckpt") == 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_while_saving_leave_whole_files_where_tmpdir_is_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system that can be written")
    target, draw = tmp_path / "last.ckpt", random.Random(0)
    weights = torch.zeros(5_000_000)
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        monkeypatch.setenv("TMPDIR", elsewhere)
        monkeypatch.setattr(tempfile, "tempdir", None)  # else it remembers where that was
        assert tempfile.gettempdir() == elsewhere
        seen, unfinished = [], 0
        for _ in range(12):
            child = os.fork()
            if not child:
                for count in itertools.count():
                    AtomicCheckpointIO().save_checkpoint({"number": count, "weights": weights}, target)
            while not target.exists():
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            whole = [path for path in (target, tmp_path / "previous.ckpt") if path.exists()]
            assert whole
            seen += [(path.name, number(path)) for path in whole]
            assert list(Path(elsewhere).iterdir()) == []
            unfinished += bool(list(tmp_path.glob(".*.part")))
            for path in (*tmp_path.glob("*.ckpt"), *tmp_path.glob(".*.part")):
                path.unlink()
    assert unfinished  # kills struck in the middle of a write
    assert len({count for _, count in seen}) > 2  # at several points of several saves


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="choose another with --default_root_dir"):
        write(tmp_path / "file" / "last.ckpt", 1)


def test_a_run_is_found_by_its_folder_by_file_and_as_latest(tmp_path: Path) -> None:
    run = tmp_path / "lightning_logs" / "version_0"
    with pytest.raises(CheckpointError, match="no run under"):
        find("latest", str(tmp_path))
    write(run / "checkpoints" / "last.ckpt", 1)
    assert find(str(run)) == run / "checkpoints" / "last.ckpt"
    write(run / "checkpoints" / "best.ckpt", 1)
    assert find("latest", str(tmp_path)) == find(str(run)) == run / "checkpoints" / "best.ckpt"
    with pytest.raises(CheckpointError, match="is not there"):
        find(str(tmp_path / "nothing"))


def test_a_folder_that_is_read_only_is_said_and_its_file_stays() -> None:
    """Root may write everything, so it is done as nobody; Lightning's own writer says nothing and goes on."""
    code = (
        "import os, sys; from pathlib import Path; from lit_training.checkpoints import *\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: AtomicCheckpointIO().save_checkpoint({}, Path(sys.argv[1], 'last.ckpt'))\n"
        "except CheckpointError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to nobody
        write(Path(folder, "last.ckpt"), 1)
        Path(folder).chmod(0o555)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
        Path(folder).chmod(0o755)
        assert "last.ckpt (Permission denied): what was there before is whole" in done.stdout, done.stderr
        assert [(path.name, number(path)) for path in Path(folder).iterdir()] == [("last.ckpt", 1)]
