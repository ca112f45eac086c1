"""A run's folder: made for one start and no other, found again by the same command, its tables continued."""

import contextlib
import csv
import itertools
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lit_training import checkpoints
from lit_training.checkpoints import CheckpointError
from lit_training.messages import UsageError

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

LOGS = "lightning_logs"
RESUME_POINTS = ("last.ckpt", "previous.ckpt")
_locks: dict[Path, IO[str]] = {}
"""By run; open as long as this process lives. The system frees them when it dies, however it dies, and no process that
it has forked holds them (as it would those of flock)."""


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


def choose(resume: str, root: str, config: str) -> Start:
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
    logs, wanted = Path(root) / LOGS, yaml.safe_load(config)
    if resume == "never":
        return _new(logs, config)
    if resume == "auto":
        for run in sorted(logs.glob("version_*"), key=_number, reverse=True):
            if _config_of(run) == wanted:
                return _whole_point(run) or _from_the_start(run)
        return _new(logs, config)
    path = locate(resume, root).resolve()
    if path.is_file() and path.parent.name != "checkpoints":
        copied = Start(path, checkpoint=path, **_read(path))
        if copied.finished and not _goes_further(wanted["trainer"], copied):
            return copied  # no folder is needed for nothing
        return replace(copied, run=(new := _new(logs, config)).run, made=new.made, finished=False)
    run = path if path.is_dir() else path.parent.parent
    saved = _config_of(run)
    if saved is not None:
        _refuse_other_settings(wanted, saved, run)
    start = replace(_taken(run), checkpoint=path, **_read(path)) if path.is_file() else _whole_point(run)
    if start is None:
        raise CheckpointError(f"{run} holds no resume point to go on from: train anew without --resume")
    if start.finished and saved != wanted and _goes_further(wanted["trainer"], start):
        start = replace(start, finished=False)
    return start


def locate(resume: str, root: str) -> Path:
    """The run's folder or the file that ``--resume`` names.

    Raises:
        CheckpointError: it is not there.
    """
    if resume == "latest":
        runs = sorted((Path(root) / LOGS).glob("version_*"), key=_number)
        if not runs:
            raise CheckpointError(f"no run under {Path(root) / LOGS} yet: train one without --resume")
        return runs[-1]
    path = Path(resume).expanduser()
    if not path.exists():
        raise CheckpointError(f"--resume {resume}: there is no such run; give never, auto, latest or a run's folder")
    return path


def continued(arguments: list[str]) -> list[str]:
    """The arguments with the configuration of the run that ``--resume`` names, so that it need not be typed again.

    Raises:
        CheckpointError: it is not there.
    """
    resume = _last_value(arguments, "--resume")
    if resume in (None, "never", "auto"):
        return arguments
    path = locate(resume, _last_value(arguments, "--default_root_dir", "--trainer.default_root_dir") or ".")
    config = (path if path.is_dir() else path.parent.parent) / "config.yaml"
    return ["--config", str(config), *arguments] if config.is_file() else arguments


def _last_value(arguments: list[str], *flags: str) -> str | None:
    """What was typed last for any of these flags, as ``--flag value`` or ``--flag=value``."""
    value = None
    for argument, after in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, joined = argument.partition("=")
        if name in flags:
            value = joined if equals else after
    return value


def _number(run: Path) -> int:
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _config_of(run: Path) -> dict[str, Any] | None:
    try:
        return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None


def _new(logs: Path, config: str) -> Start:
    """A folder of the next number; ``mkdir`` fails for all but one of those who try the same number at once.

    It holds its configuration from the beginning, so that a run killed before its first step is found again.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(max(map(_number, logs.glob("version_*")), default=-1) + 1):
            try:
                (logs / f"version_{number}").mkdir()
            except FileExistsError:
                continue
            start = replace(_taken(logs / f"version_{number}"), made=True)
            part = start.run / ".config.yaml.part"
            part.write_text(config, encoding="utf-8")
            part.replace(start.run / "config.yaml")
            return start
    except OSError as error:
        raise CheckpointError(
            f"cannot make a run's folder in {logs} ({error.strerror}): choose another place with --default_root_dir"
        ) from error
    raise AssertionError("numbers do not end")


def _taken(run: Path) -> Start:
    """The run, held against other processes that would write into it."""
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


def _whole_point(run: Path) -> Start | None:
    """The newest resume point that can be read; a broken one is said, and set aside."""
    start = _taken(run)
    for part in (run / "checkpoints").glob(".*.part"):  # what a killed process was writing
        part.unlink()
    for name in RESUME_POINTS:
        path = run / "checkpoints" / name
        if not path.exists():
            continue
        try:
            return replace(start, checkpoint=path, **_read(path))
        except CheckpointError as error:
            print(f"fit.py: warning: {error}; it is set aside as {name}.broken", file=sys.stderr)
            path.replace(path.with_name(f"{name}.broken"))
    return None


def _from_the_start(run: Path) -> Start:
    """A run that ended before its first resume point begins again in its own folder."""
    return _taken(run)


def _read(path: Path) -> dict[str, Any]:
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


def _goes_further(trainer: dict[str, Any], start: Start) -> bool:
    """Whether more epochs are asked for than a finished run has; after ``max_steps`` Lightning cannot go on."""
    assert start.checkpoint is not None
    done = checkpoints.read_any(start.checkpoint)["callbacks"]["ResumePoint"]["epoch"]
    return trainer.get("max_steps", -1) == -1 and (trainer.get("max_epochs") or 0) > done


class ContinuedCSV(CSVLogger):
    """metrics.csv that keeps the first rows of an interrupted run, where Lightning's deletes the file.

    Args:
        start: its folder and how many rows stay.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(str(start.run.parent.parent), name=start.run.parent.name, version=start.version)
        self.keep = start.rows

    @property
    @rank_zero_experiment
    def experiment(self) -> "_Rows":
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir, self.keep)
        return self._experiment  # type: ignore[return-value]


class _Rows(ExperimentWriter):
    def __init__(self, log_dir: str, keep: int) -> None:
        self.rows, self.keep = 0, keep
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            kept = list(itertools.islice(reader, self.keep))
            names = list(reader.fieldnames or [])
        if kept:
            self.rows, self.metrics_keys = len(kept), names
            self._replace(names, kept)
        else:
            path.unlink()

    def save(self) -> None:
        self.rows += len(self.metrics)
        super().save()

    def sync(self) -> None:
        """Bring the rows to the disk: a resume point counts on them."""
        self.save()
        if Path(self.metrics_file_path).exists():
            with Path(self.metrics_file_path).open() as file:
                os.fsync(file.fileno())

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self._replace(fieldnames, list(csv.DictReader(file)))

    def _replace(self, fieldnames: list[str], rows: list[dict[str, Any]]) -> None:
        """At every instant the file is the old one or the new one."""
        part = Path(self.metrics_file_path).with_name(".metrics.csv.part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self.metrics_file_path)
