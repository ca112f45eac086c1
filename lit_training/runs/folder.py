"""A run's folder: made for one start, locked against others, found again by the same command."""

import contextlib
import itertools
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from datamodules.files import atomic_write
from datamodules.text import name_first
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
"""Open files by run folder. The system frees the locks when this process dies; forked processes do not hold them."""


@dataclass(frozen=True)
class Start:
    """Where a run writes, and what it goes on from."""

    run: Path
    checkpoint: Path | None = None
    """The resume point, or None to begin."""
    step: int = 0
    """Optimizer steps behind it."""
    rows: int = 0
    """Rows of metrics.csv that belong to those steps."""
    finished: bool = False
    """The run is at its end: there is nothing to do."""
    made: bool = False
    """The folder is new, to be removed if training never begins."""

    @property
    def version(self) -> int | str:
        """What Lightning's loggers call the folder."""
        number = self.run.name.removeprefix("version_")
        return int(number) if number.isdigit() else self.run.name

    def undo(self) -> None:
        """Remove the folder again, if it is new: no step was trained."""
        if self.made:
            if (lock := _locks.pop(self.run.resolve(), None)) is not None:
                lock.close()
            shutil.rmtree(self.run, ignore_errors=True)
            with contextlib.suppress(OSError):  # other runs lie there
                self.run.parent.rmdir()


def choose_start(resume: str, root: str, config: str) -> Start:
    """Decide, on rank 0, where to write and what to go on from.

    Args:
        resume: ``never``, ``auto`` (the newest run of the same configuration), or a run's folder, ``latest``, or a
            resume point in a file.
        root: the folder that holds ``lightning_logs``.
        config: this command's whole configuration as YAML, without ``resume``.

    Raises:
        UsageError: the run is being trained at this moment, or settings contradict the run's.
        CheckpointError: there is no resume point, or none that is whole.
    """
    wanted = yaml.safe_load(config)
    if resume == "never":
        return _make_folder(root, config)
    if resume == "auto":
        for run in newest_first(root):
            if _config_of(run) == wanted:
                return newest_resume_point(run) or lock_run(run)  # without a point it begins again in its own folder
        return _make_folder(root, config)
    path = find_target(resume, root).resolve()
    if path.is_file() and path.parent.name != CHECKPOINTS:
        copied = Start(path, checkpoint=path, **_read_resume_point(path))
        if copied.finished and not extends(wanted["trainer"], copied):
            return copied  # no folder is needed for nothing
        new = _make_folder(root, config)
        return replace(copied, run=new.run, made=new.made, finished=False)
    run = path if path.is_dir() else path.parent.parent
    saved = _config_of(run)
    if saved is not None:
        _refuse_other_settings(wanted, saved, run)
    if path.is_file():
        start: Start | None = replace(lock_run(run), checkpoint=path, **_read_resume_point(path))
    else:
        start = newest_resume_point(run)
    if start is None:
        raise CheckpointError(f"{run} holds no resume point to go on from: train anew without --resume")
    if start.finished and saved != wanted and extends(wanted["trainer"], start):
        start = replace(start, finished=False)
    return start


def newest_first(root: str) -> list[Path]:
    """The folders of the runs below ``root``, the run that was begun last first."""
    return sorted((Path(root) / LOGS).glob("version_*"), key=_number, reverse=True)


def latest(root: str, can_serve: Callable[[Path], bool], what: str) -> Path:
    """The folder of the run begun last that can serve; newer ones that cannot are named on stderr.

    Args:
        root: the folder that holds ``lightning_logs``.
        can_serve: True for a run that has what is asked for.
        what: what it has to have, as ``checkpoint``.

    Raises:
        CheckpointError: there is none.
    """
    runs = newest_first(root)
    for newer, run in enumerate(runs):
        if can_serve(run):
            if newer and is_rank_zero():
                passed = name_first([skipped.name for skipped in runs[:newer]], 3)
                verb = "has" if newer == 1 else "have"
                print(f"note: latest is {run.name}: {passed} {verb} no {what}", file=sys.stderr)
            return run
    logs = Path(root) / LOGS
    if runs:
        raise CheckpointError(f"no run under {logs} has a {what}: python scripts/fit.py")
    raise CheckpointError(f"no run under {logs} yet: python scripts/fit.py")


def find_target(resume: str, root: str) -> Path:
    """The run's folder or the file that ``--resume`` names.

    Raises:
        CheckpointError: it is not there.
    """
    if resume == "latest":

        def has_point(run: Path) -> bool:
            return any((run / CHECKPOINTS / name).is_file() for name in RESUME_POINTS)

        return latest(root, has_point, "resume point")
    path = Path(resume).expanduser()
    if not path.exists():
        raise CheckpointError(f"--resume {resume}: there is no such run; give never, auto, latest or a run's folder")
    return path


def find_checkpoint(run: str, root: str = ".") -> Path:
    """The checkpoint that ``run`` names: a file, a run's folder (its best), or ``latest``.

    Raises:
        CheckpointError: there is none.
    """
    if run == "latest":
        return _checkpoint_in(latest(root, lambda run: _checkpoint_in(run) is not None, "checkpoint")) or Path()
    path = Path(run).expanduser()
    found = path if path.is_file() else _checkpoint_in(path)
    if found is None:
        what = "holds no checkpoint" if path.exists() else "is not there"
        raise CheckpointError(f"{run} {what}: give a run's folder, a .ckpt file, or latest")
    return found


def _checkpoint_in(folder: Path) -> Path | None:
    names = (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", BEST, LAST)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _number(run: Path) -> int:
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _config_of(run: Path) -> dict[str, Any] | None:
    try:
        return yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None


def _make_folder(root: str, config: str) -> Start:
    """Make the folder of the next number; ``mkdir`` fails for all but one of those who try one number at once.

    It holds its configuration from the beginning, so that a run killed before its first step is found again.
    """
    logs = Path(root) / LOGS
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(max(map(_number, logs.glob("version_*")), default=-1) + 1):
            try:
                (logs / f"version_{number}").mkdir()
            except FileExistsError:
                continue
            start = replace(lock_run(logs / f"version_{number}"), made=True)
            with atomic_write(start.run / CONFIG, "w") as file:
                file.write(config)
            return start
    except OSError as error:
        raise CheckpointError(
            f"cannot make a run's folder in {logs} ({error.strerror}): choose another place with --default_root_dir"
        ) from error
    raise AssertionError("numbers do not end")


def lock_run(run: Path) -> Start:
    """Lock a run against other processes that would write into it.

    Raises:
        UsageError: another process holds it.
    """
    if (key := run.resolve()) not in _locks:  # to close a second handle would free the first one's lock
        lock = (run / ".lock").open("w")
        try:
            _lock(lock)
        except OSError as error:
            lock.close()
            raise UsageError(
                f"{run} is being trained by another process: wait for it, or start with --resume never"
            ) from error
        _locks[key] = lock
    return Start(run)


def _lock(file: IO[str]) -> None:
    """OSError where another process has it."""
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def newest_resume_point(run: Path) -> Start | None:
    """Find the newest resume point that can be read, and lock the run. Broken ones are named and set aside."""
    start = lock_run(run)
    for part in (*run.glob(".*.part"), *(run / CHECKPOINTS).glob(".*.part")):  # what a killed process was writing
        with contextlib.suppress(OSError):
            part.unlink()
    for name in RESUME_POINTS:
        path = run / CHECKPOINTS / name
        if not path.exists():
            continue
        try:
            return replace(start, checkpoint=path, **_read_resume_point(path))
        except CheckpointError as error:
            print(f"fit.py: warning: {error}; it is set aside as {name}.broken", file=sys.stderr)
            path.replace(path.with_name(f"{name}.broken"))
    return None


def _read_resume_point(path: Path) -> dict[str, Any]:
    """What a resume point says of itself; the model may be any LightningModule."""
    checkpoint = checkpoints.read_any(path)
    try:
        state = checkpoint["callbacks"]["ResumePoint"]
        return {"step": state["logged"], "rows": state["rows"], "finished": state["finished"]}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no resume point: give the run's folder, or its last.ckpt") from error


def _refuse_other_settings(wanted: dict[str, Any], saved: dict[str, Any], run: Path) -> None:
    for key in ("seed_everything", "model", "data", "optimizer", "lr_scheduler"):
        if wanted.get(key) != saved.get(key):
            flag = {"seed_everything": "--seed"}.get(key, f"--{key}")
            raise UsageError(f"{run} was begun with another {flag}: leave it out to go on, or use --resume never")


def extends(trainer: dict[str, Any], start: Start) -> bool:
    """Whether more epochs are asked for than a finished run has; after ``max_steps`` Lightning cannot go on."""
    assert start.checkpoint is not None
    done = checkpoints.read_any(start.checkpoint)["callbacks"]["ResumePoint"]["epoch"]
    return trainer.get("max_steps", -1) == -1 and (trainer.get("max_epochs") or 0) > done


def run_folder(checkpoint_file: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    folder = checkpoint_file.absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def resume_hint(run: Path) -> str:
    """What to type to go on with a run that was stopped; "" where it has no resume point."""
    return f"go on with --resume {run}" if (run / CHECKPOINTS / LAST).is_file() else ""


def relative_path(path: Path) -> Path:
    """The path as it is typed in the current folder; unchanged where it lies elsewhere."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path
