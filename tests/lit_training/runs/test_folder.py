"""A run's folder is created once, locked against other processes, and found again by the same command."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.text import command
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs import folder
from lit_training.runs.folder import (
    RunStart,
    find_checkpoint,
    find_resume_target,
    lock_run,
    newest_first,
    prepare_start,
    relative_path,
    resume_hint,
    run_folder,
)
from tests.support.fits import QUIET, SHAPES, SMALL_NET, parse

CopyRun = Callable[..., Path]
ONE_EPOCH, THREE_EPOCHS = f"{SHAPES} --max_epochs 1", f"{SHAPES} --max_epochs 3"


def start_of(line: str) -> RunStart:
    """Return where a command line writes and what it resumes from."""
    start = parse(f"{QUIET} {line}").run.start
    assert start is not None
    return start


def make_run(number: int, *checkpoints: str) -> Path:
    """Make the folder of a run with empty files as checkpoints."""
    run = Path("lightning_logs", f"version_{number}")
    (run / "checkpoints").mkdir(parents=True)
    for name in checkpoints:
        (run / "checkpoints" / name).touch()
    return run


# --- which folder, which resume point -------------------------------------------------------------------------------


def test_auto_starts_a_new_run_if_no_run_has_the_same_settings(copy_run: CopyRun) -> None:
    copy_run(ONE_EPOCH, kill_at=3)
    assert start_of(f"{ONE_EPOCH} --resume auto --seed 1").folder.name == "version_1"
    same = start_of(f"{ONE_EPOCH} --resume auto")
    assert (same.folder.name, same.step) == ("version_0", 3)
    never = start_of(ONE_EPOCH)
    assert (never.folder.name, never.checkpoint) == ("version_2", None)


def test_auto_continues_a_run_whose_other_settings_do_not_change_the_result(
    copy_run: CopyRun, photo_folder: Path
) -> None:
    copy_run(ONE_EPOCH, kill_at=3)
    same = start_of(f"{ONE_EPOCH} --resume auto --timeout 30 --dashboard true")
    assert (same.folder.name, same.step) == ("version_0", 3)
    line = f"--data {photo_folder} {SMALL_NET} --max_epochs 1 --resume auto"
    assert start_of(f"{line} --data.num_workers 0").folder.name == "version_1"
    assert start_of(f"{line} --data.num_workers 2").folder.name == "version_1"
    # Random crops of the cache are less sharp.
    assert start_of(f"{line} --data.num_workers 2 --data.cache true").folder.name == "version_2"


def test_a_run_without_its_config_needs_all_its_flags(copy_run: CopyRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_run(f"{ONE_EPOCH} --model.lr 0.5", kill_at=3)
    (run / "config.yaml").unlink()
    assert start_of(f"{ONE_EPOCH} --model.lr 0.5 --resume latest").step == 3
    note = "config.yaml is missing, so repeat all flags of the run: only those of this command count\n"
    assert capsys.readouterr().err.endswith(note)


def test_a_resume_cannot_change_the_settings_of_a_run(copy_run: CopyRun) -> None:
    copy_run(ONE_EPOCH, kill_at=3)
    with pytest.raises(UsageError, match="started with another --model: leave it out"):
        start_of("--resume latest --model.lr 0.5")
    with pytest.raises(UsageError, match="started with another --seed: leave it out"):
        start_of("--resume latest --seed 5")


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("nowhere", "there is no such run"),
        ("latest", "no run under"),
        ("lightning_logs/version_0/checkpoints/best.ckpt", "is not a resume point"),
        ("lightning_logs/version_0", "has no resume point"),
    ],
)
def test_a_target_that_cannot_be_resumed_is_an_error(resume: str, message: str, copy_run: CopyRun) -> None:
    if "version_0" in resume:
        for path in (copy_run(ONE_EPOCH) / "checkpoints").rglob("*.ckpt"):
            if "best" not in resume or path.name != "best.ckpt":
                path.unlink()
    with pytest.raises(CheckpointError, match=message):
        start_of(f"{ONE_EPOCH} --resume {resume}")


@pytest.mark.parametrize("flag", ["--default_root_dir=runs", "--trainer.default_root_dir runs"])
def test_latest_is_the_newest_run_in_the_root_however_the_flag_is_typed(flag: str, copy_run: CopyRun) -> None:
    copy_run(f"{ONE_EPOCH} --model.lr 0.5", root="runs")
    cli = parse(f"{QUIET} --resume=latest {flag} --max_epochs 2")
    assert cli.run.start is not None
    assert cli.run.start.step == 6
    assert cli.model.hparams["lr"] == 0.5


@pytest.mark.parametrize(
    ("flags", "finished"),
    [
        ("", True),
        ("--max_epochs 2", True),
        ("--max_epochs 4", False),
        ("--log_every_n_steps 7", True),
        ("--max_epochs 4 --max_steps 18", True),
        ("--max_epochs 4 --max_steps 19", False),
        ("--max_epochs -1 --max_time 00:01:00:00", False),
    ],
)
def test_limits_that_are_not_reached_extend_a_finished_run(flags: str, finished: bool, copy_run: CopyRun) -> None:
    """Also if the run was killed before the first new resume point: then config.yaml has the new limits already."""
    run = copy_run(THREE_EPOCHS)
    cli = parse(f"{QUIET} --resume latest {flags}")
    assert cli.run.start is not None
    assert cli.run.start.trained == finished  # it is not calibrated yet
    (run / "config.yaml").write_text(cli.parser.dump(cli.config, skip_unset=False))
    for resume in ("latest", "auto"):
        assert start_of(f"{THREE_EPOCHS} --resume {resume} {flags}").trained == finished
    assert [folder.name for folder in run.parent.iterdir()] == ["version_0"]


# --- latest ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_that_was_killed_before_it_copied_its_last_resume_point_gets_last_ckpt(
    copy_run: CopyRun,
) -> None:
    run = copy_run(line := f"{SHAPES} --max_epochs 1")
    last, point = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "resume" / "last.ckpt"
    damages: list[Callable[[], Any]] = [
        lambda: shutil.copy(point.with_name("previous.ckpt"), last),
        last.unlink,
        lambda: last.write_bytes(b"half"),
    ]
    for damage in damages:
        damage()
        assert start_of(f"{line} --resume auto").trained
        assert last.read_bytes() == point.read_bytes()
    torch.save({"state_dict": {}}, last)  # a checkpoint of the user
    start_of(f"{line} --resume auto")
    assert torch.load(last, weights_only=True) == {"state_dict": {}}


def test_latest_is_the_newest_run_that_has_the_needed_file(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(2, "last.ckpt")
    make_run(10, "best.ckpt")
    make_run(11)
    assert [run.name for run in newest_first(".")] == ["version_11", "version_10", "version_2"]
    assert find_checkpoint("latest") == Path("lightning_logs/version_10/checkpoints/best.ckpt")
    assert capsys.readouterr().err == "note: latest is version_10, because version_11 has no best.ckpt or last.ckpt\n"
    assert find_resume_target("latest", ".") == Path("lightning_logs/version_2")
    assert capsys.readouterr().err == "note: latest is version_2, because version_11, version_10 have no resume point\n"


def test_latest_of_the_newest_run_needs_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(0, "last.ckpt")
    make_run(1, "previous.ckpt")
    assert find_resume_target("latest", ".") == Path("lightning_logs/version_1")
    assert capsys.readouterr().err == ""


def test_latest_without_a_usable_run_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"no run under lightning_logs yet: start a run with .*scripts/fit\.py"):
        find_checkpoint("latest")
    make_run(0)
    with pytest.raises(
        CheckpointError,
        match=r"no run under lightning_logs has a best.ckpt or last.ckpt: start a run with .*scripts/fit\.py",
    ):
        find_checkpoint("latest")
    with pytest.raises(CheckpointError, match="no run under lightning_logs has a resume point"):
        find_resume_target("latest", ".")


# --- a checkpoint by name -------------------------------------------------------------------------------------------


def test_a_checkpoint_is_found_by_run_by_file_and_as_latest(tmp_path: Path) -> None:
    run = make_run(0, "last.ckpt").absolute()
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    assert find_checkpoint(str(run)) == find_checkpoint(str(run / "checkpoints")) == last
    best.touch()
    assert find_checkpoint("latest", str(tmp_path)) == find_checkpoint(str(run)) == best
    assert find_checkpoint(str(last)) == last


def test_a_folder_without_a_checkpoint_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"nothing does not exist: give a run's folder, a \.ckpt file, or latest"):
        find_checkpoint("nothing")
    Path("empty/checkpoints").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"empty has no best.ckpt or last.ckpt: give a run's folder, a .ckpt file, or"
    ):
        find_checkpoint("empty")
    Path("empty/checkpoints/epoch=0-step=50.ckpt").touch()  # the name that a Trainer gives by default
    with pytest.raises(
        CheckpointError, match=r"a .ckpt file such as empty/checkpoints/epoch=0-step=50.ckpt, or latest"
    ):
        find_checkpoint("empty")
    Path("lightning_logs").mkdir()
    Path("empty").rename("lightning_logs/version_0")
    with pytest.raises(
        CheckpointError, match=r"has a best.ckpt or last.ckpt: .*, or give another .ckpt file by its path$"
    ):
        find_checkpoint("latest")


def test_the_run_folder_of_a_checkpoint_and_its_paths(tmp_path: Path) -> None:
    run = make_run(0, "last.ckpt")
    assert run_folder(run / "checkpoints" / "last.ckpt") == tmp_path / run
    assert run_folder(Path("copy.ckpt")) == tmp_path
    assert resume_hint(run) == f"go on with {command('fit.py')} --resume lightning_logs/version_0"
    assert resume_hint(Path("elsewhere")) == ""
    assert relative_path(tmp_path / run) == run
    assert relative_path(Path("/elsewhere")) == Path("/elsewhere")


# --- locks ----------------------------------------------------------------------------------------------------------


def test_a_run_locked_by_another_process_is_refused(copy_run: CopyRun) -> None:
    run = copy_run(ONE_EPOCH, kill_at=3)
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="version_0 is being trained by another process"):
            start_of(f"{ONE_EPOCH} --resume auto")
        other.communicate()
    assert start_of(f"{ONE_EPOCH} --resume auto").folder.name == "version_0"


def test_a_run_that_cannot_be_locked_gets_one_line(copy_run: CopyRun) -> None:
    run = copy_run(ONE_EPOCH, kill_at=3)
    (run / ".lock").unlink()
    (run / ".lock").mkdir()  # a run on a read-only disk gives another OSError
    with pytest.raises(CheckpointError, match=r"version_0 cannot be written \(Is a directory\): make it writable"):
        start_of(f"{ONE_EPOCH} --resume auto")


def test_a_run_is_locked_until_its_process_ends_or_removes_it() -> None:
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def is_free(run: Path) -> bool:
        command = [sys.executable, "-c", code, str(run / ".lock")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    start = prepare_start("never", ".", "{}")
    assert not is_free(start.folder)
    lock_run(start.folder)  # a second call must not open the file, because closing it releases the lock
    assert not is_free(start.folder)
    start.remove_if_new()
    assert not Path("lightning_logs").exists()
    again = prepare_start("never", ".", "{}")
    assert again.folder == start.folder
    assert not is_free(again.folder)


def test_two_starts_at_once_get_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def other_is_first(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "version_0":
            make(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", other_is_first)
    assert prepare_start("never", ".", "{}").folder == Path("lightning_logs/version_1")


def test_remove_if_new_keeps_the_folder_of_an_old_run() -> None:
    run = make_run(0, "last.ckpt")
    RunStart(run).remove_if_new()
    assert run.exists()
    RunStart(run, is_new=True).remove_if_new()
    assert not Path("lightning_logs").exists()


def test_a_folder_that_cannot_be_written_is_an_error() -> None:
    Path("file").touch()
    with pytest.raises(CheckpointError, match="choose another folder with --default_root_dir"):
        prepare_start("never", "file", "{}")


def test_a_failed_start_leaves_no_folder() -> None:
    with pytest.raises(UsageError):
        parse(f"{SHAPES} {QUIET} --devices 0")
    assert not Path(folder.LOGS).exists()


def test_the_version_equals_the_version_of_lightnings_loggers() -> None:
    assert RunStart(Path("lightning_logs/version_12")).version == 12
    assert RunStart(Path("lightning_logs/my_run")).version == "my_run"
