"""The folder of a run: make it, lock it against other processes, find it again."""

import contextlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from datamodules.files import atomic_write
from datamodules.text import first_names
from lit_training.errors import CheckpointError, UsageError, is_rank_zero
from lit_training.runs import checkpoints
from lit_training.runs.layout import BEST, CHECKPOINTS, CONFIG, LAST, LOGS, PREVIOUS

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


RESUME_POINTS = (LAST, PREVIOUS)
_locks: dict[Path, IO[str]] = {}
"""Run folder -> its open lock file. The system releases the locks when this process ends; forks do not inherit them."""


@dataclass(frozen=True)
class Start:
    """Where a run writes, and what it resumes from."""

    run: Path
    checkpoint: Path | None = None
    """The resume point, or None for a new run."""
    step: int = 0
    """Optimizer steps before the resume point."""
    rows: int = 0
    """Rows of metrics.csv that belong to those steps."""
    epoch: int = 0
    """Complete epochs before the resume point."""
    finished: bool = False
    """True if the run is complete and there is nothing to train."""
    made: bool = False
    """True if the folder is new. It is removed if training never begins."""

    @property
    def version(self) -> int | str:
        """The folder's version in Lightning's loggers: N for ``version_N``, otherwise its name."""
        number = _number(self.run)
        return self.run.name if number < 0 else number

    def undo(self) -> None:
        """Remove the folder if it is new, because no step was trained."""
        if self.made:
            if (lock := _locks.pop(self.run.resolve(), None)) is not None:
                lock.close()
            shutil.rmtree(self.run, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: it holds other runs
                self.run.parent.rmdir()


def choose_start(resume: str, root: str, config: str) -> Start:
    """Decide where to write and what to resume from. Only rank 0 calls it.

    Args:
        resume: ``never``, ``auto`` (the newest run with the same configuration), a run's folder, ``latest``, or the
            file of a resume point.
        root: the folder that holds ``lightning_logs``.
        config: the configuration of this command as YAML, without ``resume``.

    Raises:
        UsageError: another process trains the run, or the settings differ from the run's.
        CheckpointError: there is no resume point that can be read.
    """
    wanted = yaml.safe_load(config)
    if resume == "auto":
        for run in newest_first(root):
            if _config_of(run) == wanted:
                return newest_resume_point(run) or lock_run(run)  # without a resume point it starts again in its folder
    if resume in ("auto", "never"):
        return _make_folder(root, config)
    path = find_resume_target(resume, root).resolve()
    if path.is_file() and path.parent.name != CHECKPOINTS:
        copied = _read_resume_point(Start(path), path)
        if copied.finished and not extends(wanted["trainer"], copied):
            return copied  # nothing to train, so no folder is made
        new = _make_folder(root, config)
        return replace(copied, run=new.run, made=new.made, finished=False)
    run = path if path.is_dir() else path.parent.parent
    saved = _config_of(run)
    if saved is not None:
        _refuse_other_settings(wanted, saved, run)
    start = _read_resume_point(lock_run(run), path) if path.is_file() else newest_resume_point(run)
    if start is None:
        raise CheckpointError(f"{run} holds no resume point: leave --resume out to train a new run")
    if start.finished and saved != wanted and extends(wanted["trainer"], start):
        start = replace(start, finished=False)
    return start


def newest_first(root: str) -> list[Path]:
    """Return the folders of the runs under ``root``, the newest run first."""
    return sorted((Path(root) / LOGS).glob("version_*"), key=_number, reverse=True)


def latest(root: str, can_serve: Callable[[Path], bool], what: str) -> Path:
    """Return the folder of the newest run that can be used. Newer runs that cannot are named on stderr.

    Args:
        root: the folder that holds ``lightning_logs``.
        can_serve: returns True for the folder of a run that can be used.
        what: what such a run has, for example ``checkpoint``.

    Raises:
        CheckpointError: there is none.
    """
    runs = newest_first(root)
    for newer, run in enumerate(runs):
        if can_serve(run):
            if newer and is_rank_zero():
                passed = first_names([skipped.name for skipped in runs[:newer]], 3)
                verb = "has" if newer == 1 else "have"
                print(f"note: latest is {run.name}: {passed} {verb} no {what}", file=sys.stderr)
            return run
    missing = f"has a {what}" if runs else "yet"
    raise CheckpointError(f"no run under {Path(root) / LOGS} {missing}: python scripts/fit.py")


def find_resume_target(resume: str, root: str) -> Path:
    """Return the run's folder or the file that ``--resume`` names.

    Raises:
        CheckpointError: it does not exist.
    """
    if resume == "latest":
        return latest(root, lambda run: _first_file(run / CHECKPOINTS, RESUME_POINTS) is not None, "resume point")
    path = Path(resume).expanduser()
    if not path.exists():
        raise CheckpointError(f"--resume {resume}: there is no such run; give never, auto, latest or a run's folder")
    return path


def find_checkpoint(run: str, root: str = ".") -> Path:
    """Return the checkpoint that ``run`` names: a file, a run's folder (its best checkpoint), or ``latest``.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(run).expanduser()
    if run == "latest":
        path = latest(root, lambda run: _checkpoint_in(run) is not None, "checkpoint")
    found = path if path.is_file() else _checkpoint_in(path)
    if found is None:
        what = "holds no checkpoint" if path.exists() else "is not there"
        raise CheckpointError(f"{run} {what}: give a run's folder, a .ckpt file, or latest")
    return found


def _checkpoint_in(folder: Path) -> Path | None:
    return _first_file(folder, (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", BEST, LAST))


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _number(run: Path) -> int:
    """Return N for the folder ``version_N``, and -1 for other names."""
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _config_of(run: Path) -> dict[str, Any] | None:
    try:
        return yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None


def _make_folder(root: str, config: str) -> Start:
    """Make and lock the folder with the next number. If several processes try a number, ``mkdir`` works for only one.

    The configuration is written at once, so that ``auto`` also finds a run that was killed before its first step.
    """
    logs = Path(root) / LOGS
    try:
        logs.mkdir(parents=True, exist_ok=True)
        number = max(map(_number, logs.glob("version_*")), default=-1) + 1
        while True:
            run = logs / f"version_{number}"
            try:
                run.mkdir()
                break
            except FileExistsError:
                number += 1
        start = replace(lock_run(run), made=True)
        with atomic_write(run / CONFIG, "w") as file:
            file.write(config)
        return start
    except OSError as error:
        raise CheckpointError(
            f"cannot make a folder for the run in {logs} ({error.strerror}): choose another one with --default_root_dir"
        ) from error


def lock_run(run: Path) -> Start:
    """Lock a run against other processes that would write into it.

    Raises:
        UsageError: another process has locked it.
    """
    if (key := run.resolve()) not in _locks:  # closing a second handle would release the lock of the first
        lock = (run / ".lock").open("w")
        try:
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            lock.close()
            raise UsageError(
                f"{run} is being trained by another process: wait for it, or start with --resume never"
            ) from error
        _locks[key] = lock
    return Start(run)


def newest_resume_point(run: Path) -> Start | None:
    """Lock the run and return its newest resume point that can be read. A broken one is reported and renamed."""
    start = lock_run(run)
    for part in (*run.glob(".*.part"), *(run / CHECKPOINTS).glob(".*.part")):  # left by a killed process
        with contextlib.suppress(OSError):
            part.unlink()
    for name in RESUME_POINTS:
        path = run / CHECKPOINTS / name
        if not path.exists():
            continue
        try:
            return _read_resume_point(start, path)
        except CheckpointError as error:
            print(f"fit.py: warning: {error}; renamed to {name}.broken", file=sys.stderr)
            path.replace(path.with_name(f"{name}.broken"))
    return None


def _read_resume_point(start: Start, path: Path) -> Start:
    """Return ``start`` with the state of the resume point at ``path``; the model may be any LightningModule."""
    checkpoint = checkpoints.read_any(path)
    try:
        state = checkpoint["callbacks"]["ResumePoint"]
        step, rows, epoch, finished = (state[key] for key in ("logged", "rows", "epoch", "finished"))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a resume point: give the run's folder, or its last.ckpt") from error
    return replace(start, checkpoint=path, step=step, rows=rows, epoch=epoch, finished=finished)


def _refuse_other_settings(wanted: dict[str, Any], saved: dict[str, Any], run: Path) -> None:
    for key in ("seed_everything", "model", "data", "optimizer", "lr_scheduler"):
        if wanted.get(key) != saved.get(key):
            flag = "seed" if key == "seed_everything" else key
            raise UsageError(f"{run} was started with another --{flag}: leave the flag out, or use --resume never")


def extends(trainer: dict[str, Any], start: Start) -> bool:
    """Return True if ``trainer`` has more epochs than a finished run. Lightning cannot resume after ``max_steps``."""
    return trainer.get("max_steps", -1) == -1 and (trainer.get("max_epochs") or 0) > start.epoch


def run_folder(checkpoint_file: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to."""
    folder = checkpoint_file.absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def resume_hint(run: Path) -> str:
    """Return how to resume a stopped run, or "" if it has no resume point."""
    return f"go on with --resume {run}" if (run / CHECKPOINTS / LAST).is_file() else ""


def relative_path(path: Path) -> Path:
    """Return the path relative to the current folder, or unchanged if it is elsewhere."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path
