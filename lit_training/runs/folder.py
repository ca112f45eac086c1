"""Create the folder of a run, lock it against other processes, and find it again later."""

import contextlib
import copy
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import yaml

from datamodules.files import OUTPUT_MARKER, atomic_write
from datamodules.text import command, first_names, is_rank_zero, plural, print_note
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs import checkpoints
from lit_training.runs.layout import BEST, CHECKPOINTS, CONFIG, FOLDS, LAST, LOGS, PREVIOUS, RESUME, SPLIT
from lit_training.text import expand_paths

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

_locks: dict[Path, IO[str]] = {}
"""Run folder -> its open lock file. The lock ends when this process ends; a forked process does not inherit it."""


@dataclass(frozen=True)
class RunStart:
    """The folder that a run writes to, and the resume point: the checkpoint that the run starts from."""

    folder: Path
    checkpoint: Path | None = None  # the file of the resume point, or None for a new run
    step: int = 0  # steps before the resume point, as they are logged
    batches: int = 0  # training batches before the resume point
    metrics_rows: int = 0  # rows in metrics.csv when the resume point was written
    epoch: int = 0  # complete epochs before the resume point
    finished: bool = False  # True if the run is complete, so there is nothing to do
    trained: bool = False  # True if there is nothing to train; unless it has finished, best.ckpt is not calibrated yet
    limits: dict[str, Any] = field(default_factory=dict)  # the settings of this command that decide when training ends
    threads: tuple[int, int] | None = None  # of the run: for training, and for computing features
    processes: int = 0  # with which the run began
    kept: dict[str, Any] = field(default_factory=dict)
    """Arguments of the data module that differ from this command's: ``batch_size`` if the number of processes has
    changed, and those in ``checkpoints.OLDER_ARGUMENTS``."""
    is_new: bool = False  # True if this command created the folder

    @property
    def version(self) -> int | str:
        """The version for Lightning's loggers: N for the folder ``version_N``, otherwise the folder's name."""
        number = _version_number(self.folder)
        return self.folder.name if number < 0 else number

    def apply_to(self, data: Any) -> None:
        """Give the data module the arguments and the split that the run keeps."""
        for attributes in (vars(data), data.hparams) if self.kept else ():
            attributes.update({name: value for name, value in self.kept.items() if name in attributes})
        split_file = self.folder / SPLIT
        if hasattr(data, "began") and split_file.is_file() and (self.checkpoint or can_resume(self.folder)):
            data.began = str(split_file)

    def remember(self) -> Callable[[], None]:
        """Return a function that undoes a failed start: it removes a new folder, or restores the files of the run."""
        if self.is_new:
            return self.remove_if_new
        present = {file for file in self.folder.glob("*") if file.is_file()}
        small = [file for file in present if file.suffix in (".yaml", ".csv", ".json")]
        saved = [(file, file.read_bytes(), file.stat().st_mtime_ns) for file in small]

        def restore() -> None:
            for file in set(self.folder.glob("*")) - present:
                if file.is_file():
                    file.unlink()
            for file, content, mtime in saved:
                with atomic_write(file) as out:
                    out.write(content)
                os.utime(file, ns=(mtime, mtime))

        return restore

    def remove_if_new(self) -> None:
        """Remove the folder if this command created it. Call this only if training failed before its first step."""
        if self.is_new and not (self.folder / FOLDS).is_dir():
            if (lock := _locks.pop(self.folder.resolve(), None)) is not None:
                lock.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # rmdir() fails if the parent folder contains other runs
                self.folder.parent.rmdir()


def prepare_start(resume: str, root: str, config_yaml: str, photos: str | None = None) -> RunStart:
    """Choose, create and lock the run's folder, and choose the resume point. Only rank 0 calls this function.

    ``root`` is the folder that contains ``lightning_logs``, ``config_yaml`` the configuration of this command without
    ``resume``. Raise a UsageError if another process is training the run, or this command has other settings. Raise a
    CheckpointError if no resume point can be read, or the folder cannot be created.
    """
    new_config = yaml.safe_load(config_yaml)
    limits = limits_of(new_config)
    if resume == "auto":
        runs = newest_first(root)
        for is_same, candidates in ((_same_settings, runs), (_same_but_size, filter(resume_points, runs))):
            for run in candidates:
                if is_same(_that_decide(_read_config(run)), _that_decide(new_config)):
                    # A run without a resume point starts again at step 0, in the same folder.
                    return lock_and_read_resume_point(run, limits)
    if resume in ("auto", "never"):
        return replace(_make_folder(root, config_yaml), limits=limits)
    path = find_resume_target(resume, root).resolve()
    run = path if path.is_dir() else run_folder(path)
    if run == path.parent and path.is_file():  # a copy outside of its run
        file_start = _read_resume_point(RunStart(path, limits=limits), path)
        if file_start.finished:
            return file_start  # nothing to train, so no folder is created
        return replace(file_start, folder=_make_folder(root, config_yaml).folder, is_new=True, processes=0)
    run_config = _read_config(run)
    if run_config is not None:
        if photos is not None:
            run_config["data"]["init_args"]["root"] = photos
        _refuse_other_settings(new_config, run_config, run)
    if path.is_file():
        return _read_resume_point(replace(lock_run(run), limits=limits), path)
    if (start := lock_and_read_resume_point(run, limits)).checkpoint is None and not can_resume(run):
        fix = "repeat its command, with --resume auto to use its folder"
        raise CheckpointError(f"{run} has no resume point yet: {fix}")
    return start


def newest_first(root: str) -> list[Path]:
    """Return the folders of the runs under ``root``, the newest first."""
    return sorted((Path(root) / LOGS).glob("version_*"), key=_version_number, reverse=True)


def newest_usable_run(root: str, is_usable: Callable[[Path], Any], needed_file: str, other_fix: str = "") -> Path:
    """Return the newest run under ``root`` for which ``is_usable(run)`` is true. Print a note if it skips newer runs.

    In messages, ``needed_file`` is missing. Without a usable run, raise a CheckpointError that ends with ``other_fix``.
    """
    runs = newest_first(root)
    for newer_count, run in enumerate(runs):
        if is_usable(run):
            if newer_count:
                skipped = first_names([newer.name for newer in runs[:newer_count]], 3)
                verb = "has" if newer_count == 1 else "have"
                print_note(f"latest is {run.name}, because {skipped} {verb} no {needed_file}")
            return run
    logs = Path(root) / LOGS
    problem = f"no run under {logs} has a {needed_file}" if runs else f"there is no run under {logs} yet"
    raise CheckpointError(f"{problem}: start a run with {command('fit.py')}{other_fix}")


def find_resume_target(resume: str, root: str) -> Path:
    """Return the path of the run or the checkpoint in ``--resume``. Raise a CheckpointError if it does not exist."""
    if resume == "latest":
        return newest_usable_run(root, can_resume, "resume point")
    path = Path(resume).expanduser()
    if not path.exists():
        raise CheckpointError(f"--resume {resume}: there is no such run; give never, auto, latest or a run's folder")
    return path


def resume_points(run: Path) -> list[Path]:
    """Return the files of the resume points of a run, the newest first. Older versions wrote them beside best.ckpt."""
    points, old = ([run / folder / name for name in (LAST, PREVIOUS)] for folder in (RESUME, CHECKPOINTS))
    if points := [point for point in points if point.is_file()]:
        return points
    return [point for point in old if point.is_file() and checkpoints.is_resume_point(point, if_unreadable=True)]


def can_resume(run: Path) -> bool:
    """Return True if a run has a resume point, or results of its folds."""
    return bool(resume_points(run)) or (run / FOLDS).is_dir()


def find_checkpoint(run: str, root: str = ".") -> Path:
    """Return best.ckpt, else last.ckpt, else the newest resume point of a run. Raise a CheckpointError without these.

    ``run`` is a checkpoint file, the folder of a run, or ``latest`` for the newest run under ``root``.
    """
    path = Path(run).expanduser()
    if run == "latest":
        path = newest_usable_run(root, _checkpoint_in, f"{BEST} or {LAST}", ", or give another .ckpt file by its path")
    checkpoint = path if path.is_file() else _checkpoint_in(path)
    if checkpoint is None:
        problem = f"has no {BEST} or {LAST}" if path.exists() else "does not exist"
        example = "".join(f" such as {file}" for file in sorted(path.glob("**/*.ckpt"))[-1:])  # of a bare Trainer
        raise CheckpointError(f"{run} {problem}: give a run's folder, a .ckpt file{example}, or latest")
    return checkpoint


def _checkpoint_in(folder: Path) -> Path | None:
    names = (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", f"{RESUME}/{LAST}", BEST, LAST)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _version_number(run: Path) -> int:
    """Return N if the name of the folder is ``version_N``, otherwise -1."""
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _read_config(run: Path) -> dict[str, Any] | None:
    """Return the configuration of a run, or None if config.yaml cannot be read. Older versions had no ``compile``."""
    try:
        return {"compile": False, **yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))}
    except (OSError, TypeError, yaml.YAMLError, UnicodeDecodeError):
        return None


def _make_folder(root: str, config_yaml: str) -> RunStart:
    """Create and lock the folder of a new run. Write its config.yaml, by which ``--resume auto`` finds the run."""
    logs = Path(root) / LOGS
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(max(map(_version_number, logs.glob("version_*")), default=-1) + 1):
            run = logs / f"version_{number}"
            with contextlib.suppress(FileExistsError):
                run.mkdir()  # if two processes try this, only one succeeds
                break
        (run / OUTPUT_MARKER).touch()
        start = replace(lock_run(run), is_new=True)
        with atomic_write(run / CONFIG, "w") as file:
            file.write(config_yaml)
        return start
    except OSError as error:
        fix = "choose another folder with --default_root_dir"
        raise CheckpointError(f"cannot create a run in {logs} ({error.strerror}): {fix}") from error


def lock_run(run: Path) -> RunStart:
    """Lock a run's folder and return a RunStart at step 0.

    Raise a UsageError if another process has locked it, and a CheckpointError if the folder cannot be written.
    """
    if (key := run.resolve()) not in _locks:  # never open the file twice: closing one of the two releases the lock
        try:
            lock = (run / ".lock").open("a")
        except OSError as error:
            problem = f"{run} cannot be written ({error.strerror})"
            raise CheckpointError(f"{problem}: make it writable, or copy the run to another folder") from error
        try:
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            lock.close()
            problem = f"{run} is being trained by another process"
            raise UsageError(f"{problem}: wait for it, or start with --resume never") from error
        _locks[key] = lock
    return RunStart(run)


def lock_and_read_resume_point(run: Path, limits: dict[str, Any]) -> RunStart:
    """Lock the run and return its newest readable resume point, or step 0 if it has written none yet.

    If only the older of two can be read, rename the other to ``NAME.broken``. If none can be read, raise a
    CheckpointError and change nothing. Remove incomplete files that a killed process has left.
    """
    start, errors = replace(lock_run(run), limits=limits), []
    for path in (points := resume_points(run)):
        try:
            start = _read_resume_point(start, path)
            break
        except CheckpointError as error:
            errors.append(str(error))
    if errors and start.checkpoint is None:
        raise CheckpointError(f"{'; '.join(errors)}: train a new run with --resume never")
    for message in errors:
        print(f"fit.py: warning: {message}; renamed to {LAST}.broken, using {PREVIOUS}", file=sys.stderr)
        points[0].replace(points[0].with_name(f"{LAST}.broken"))
    for unfinished in (part for folder in ("", CHECKPOINTS, RESUME) for part in (run / folder).glob(".*.part")):
        with contextlib.suppress(OSError):
            unfinished.unlink()
    if start.trained and start.checkpoint:  # the process may have been killed before it copied the last resume point
        checkpoints.copy_resume_point(start.checkpoint, run / CHECKPOINTS / LAST)
    return start


def _read_resume_point(start: RunStart, path: Path) -> RunStart:
    """Return a copy of ``start`` with the values from the resume point in the file ``path``."""
    checkpoint = checkpoints.read_any(path)
    try:
        state = checkpoint["callbacks"][checkpoints.RESUME_STATE]
        step, metrics_rows, epoch, finished = (state[key] for key in ("logged", "rows", "epoch", "finished"))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a resume point: give the run's folder") from error
    if finished:  # it was, with the limits of that command
        reached = {"max_epochs": epoch, "max_steps": checkpoint["global_step"]}
        limits = state.get("limits") or limits_of(_read_config(start.folder))  # older versions saved none
        if "limits" not in state and not (limits["early_stopping"] or limits["callbacks"]):
            limits["max_epochs"] = epoch  # config.yaml may have those of a later command
        finished = limits == start.limits or any(
            start.limits[name] not in (None, -1) and start.limits[name] <= done for name, done in reached.items()
        )
    threads: Any = tuple(state.get("threads") or ()) or None  # runs of older versions have none
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    start = replace(start, checkpoint=path, step=step, batches=batches, metrics_rows=metrics_rows)
    start = replace(start, epoch=epoch, trained=finished)
    finished = finished and not checkpoints.lacks_calibration(start.folder / CHECKPOINTS / BEST)
    return replace(start, finished=finished, threads=threads, processes=state.get("shape", [0])[0])


def keep_settings(start: RunStart, new_config: Any, processes: int, typed: set[str]) -> RunStart:
    """Return ``start`` with the arguments of the data module that the run keeps, or raise a UsageError.

    The batch size gives the run's global batch on ``processes``. Set the devices and the arguments in ``new_config`` to
    those of the run. ``typed``: the flags of the command.
    """
    config = _read_config(start.folder) or {}
    arguments, own = ((part.get("data") or {}).get("init_args") or {} for part in (new_config, config))
    if arguments.get("group") == "near" and "group" not in own:
        if "--data.group" in typed and is_rank_zero():  # other ranks do not know the run yet
            raise UsageError(f"{start.folder} began without --data.group: leave it out, or use --resume never")
        start = replace(start, kept=checkpoints.OLDER_ARGUMENTS)
        arguments["group"] = start.kept["group"]
    if not start.processes:
        return replace(start, processes=processes)
    own, size = _without_size(config)[1], _without_size(new_config.as_dict())[1]
    if own is None:  # the batches per epoch are compared later
        return start
    share, rest, run = *divmod(total := own * start.processes, processes), relative_path(start.folder)
    problem = f"{run} has a global batch of {total} ({own} on each of {plural(start.processes, 'device')})"
    if rest:
        fitting = max(number for number in range(1, processes) if total % number == 0)
        raise UsageError(f"{problem}, which {processes} devices cannot share equally: --devices {fitting}")
    if size != share and ("--data.batch_size" in typed or size != own):
        raise UsageError(f"{problem}: --data.batch_size {share}, or --resume {run} without --data.batch_size")
    new_config["data"]["init_args"]["batch_size"] = own
    for name in ("devices", "num_nodes"):
        new_config["trainer"][name] = config["trainer"].get(name)
    return start if processes == start.processes else replace(start, kept={**start.kept, "batch_size": share})


def _that_decide(config: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy of a configuration with only the settings that decide the result of the run."""
    rest = copy.deepcopy(config or {})
    data = rest.get("data") or {}
    if str(data.get("class_path")).startswith("datamodules."):  # the workers of other data may draw other numbers
        (data.get("init_args") or {}).pop("num_workers", None)
    return {name: value for name, value in rest.items() if name not in ("timeout", "dashboard")}


def _without_size(config: dict[str, Any] | None) -> tuple[dict[str, Any], int | None, int | None]:
    """Return a configuration without devices and batch size, and the batch size of one and of all devices, or None."""
    rest = copy.deepcopy(config or {})
    trainer, arguments = rest.get("trainer") or {}, (rest.get("data") or {}).get("init_args") or {}
    devices, nodes = str(trainer.pop("devices", "")), trainer.pop("num_nodes", 1)
    if type(arguments.get("batch_size")) is not int:  # data of a user may have none, or several
        return rest, None, None
    size = arguments.pop("batch_size")
    return rest, size, size * int(devices) * nodes if devices.isdecimal() else None


def _same_but_size(old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    """Return True if two configurations differ only in the devices, with the same batch size or global batch."""
    (old_rest, *old_sizes), (new_rest, *new_sizes) = _without_size(old), _without_size(new)
    is_same = any(a == b is not None for a, b in zip(old_sizes, new_sizes, strict=True))
    return is_same and _same_settings(old_rest, new_rest)


def limits_of(config: dict[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a configuration that decide when training ends."""
    trainer = (config or {}).get("trainer") or {}
    limits = {name: trainer.get(name) for name in ("max_epochs", "max_steps", "max_time", "callbacks")}
    return limits | {name: (config or {}).get(name) for name in ("early_stopping", "monitor")}


def _refuse_other_settings(new_config: dict[str, Any], run_config: dict[str, Any], run: Path) -> None:
    new_config, run_config = (_without_size(_that_decide(config))[0] for config in (new_config, run_config))
    keys = ["seed_everything", "model", "data", "optimizer", "lr_scheduler", "threads", "compile", "folds", "repeats"]
    for key in keys:
        if not _same_settings({key: run_config.get(key)}, {key: new_config.get(key)}):
            flag = "seed" if key == "seed_everything" else key
            moved = " (--photos DIR if its photos are in another place now)" * (key == "data")
            raise UsageError(f"{run} was started with another --{flag}: leave it out{moved}, or use --resume never")
    old, new = ({**limits_of(config), "callbacks": None} for config in (run_config, new_config))
    if run_config.get("folds") and not _same_settings(old, new):
        names = ", ".join(f"--{name}" for name in old if old[name] != new[name])
        raise UsageError(f"{run} has --folds, so {names} cannot change: leave it out, or use --resume never")


def _same_settings(old: Any, new: Any) -> bool:
    """Compare two configurations. A setting that an older version of this project did not have is equal to null."""
    if isinstance(old, dict) and isinstance(new, dict):
        # the run lies in the first; the second does not change the result
        names = (old.keys() | new.keys()) - {"default_root_dir", "on_device"}
        if new.get("threads") == "auto":  # a resumed run keeps its number
            names -= {"threads"}
        names -= checkpoints.OLDER_ARGUMENTS.keys() - old.keys()  # a run of an older version keeps them
        return all(_same_settings(old.get(name), new.get(name)) for name in names)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(map(_same_settings, old, new))
    if isinstance(old, str) and isinstance(new, str) and old != new:  # they may be spellings of one path
        old, new = (os.path.realpath(expand_paths(path)) for path in (old, new))
    return bool(old == new)


def run_folder(checkpoint_file: Path) -> Path:
    """Return the absolute path of the run folder that contains this checkpoint file."""
    folder = checkpoint_file.absolute().parent
    if folder.match(RESUME):
        folder = folder.parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def resume_hint(run: Path) -> str:
    """Return the hint ``go on with COMMAND --resume RUN``, or "" if the run has no resume point."""
    run = run.parent.parent if run.parent.name == FOLDS else run  # the folder of one fold
    resume = command("fit.py", "--resume", relative_path(run))
    return f"go on with {resume}" if can_resume(run) else ""


def relative_path(path: Path) -> Path:
    """Return the path relative to the current folder. Return a path outside of this folder unchanged."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path
