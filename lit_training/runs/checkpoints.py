"""Write checkpoints atomically, and read checkpoints without executing code in the file."""

import contextlib
import filecmp
import inspect
import io
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torchvision.transforms import InterpolationMode

from datamodules import DataError, Preprocessing
from datamodules.files import atomic_write
from datamodules.text import print_once
from lit_models import LitBase
from lit_models.base import dotted_path
from lit_training.errors import CheckpointError
from lit_training.runs.layout import PREVIOUS
from lit_training.runs.own_classes import find_class, is_own
from lit_training.runs.plain import MISSING_PARTS, create, plain_checkpoint

SECONDS_BETWEEN_WRITES = 5.0
RESUME_STATE = "ResumePoint"  # key of the state that makes a checkpoint a resume point; only ResumePoint.save adds it
OLDER_ARGUMENTS = {"group": "exact"}
"""Arguments that ImageFolderDataModule did not have in older versions -> the values with which it does the same."""


class FitCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, and limit how often best.ckpt is written.

    The old resume point is renamed to previous.ckpt, so that one of the two files is always complete. A new best.ckpt
    waits in memory if the last one was written less than :data:`SECONDS_BETWEEN_WRITES` ago. It is written to disk
    before any other file (a resume point contains the path of best.ckpt), before a checkpoint is read, and at the end.
    Checkpoints of the user's callbacks are written by ``users``: the user's CheckpointIO, if there is one.
    """

    best: Path | None = None  # the file of BestCheckpoint
    is_restoring = False  # from reading a checkpoint to the start of training

    def __init__(self, users: CheckpointIO | None = None) -> None:
        self.users = users
        if isinstance(users, AsyncCheckpointIO):
            users.checkpoint_io = FitCheckpointIO()  # if the user has not chosen another one
        self._waiting_copy: tuple[io.BytesIO, Path] | None = None
        self._last_write_time = -float("inf")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. best.ckpt may be written later. Raise a CheckpointError if writing fails."""
        checkpoint = plain_checkpoint(checkpoint)
        if Path(path) != self.best:
            self.flush()
            keep_old = RESUME_STATE in checkpoint.get("callbacks", {})
            if self.users is not None and not keep_old:
                return self.users.save_checkpoint(checkpoint, path, storage_options)
            return _write(Path(path), lambda file: torch.save(checkpoint, file), keep_old)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        self._waiting_copy = buffer, Path(path)
        if time.monotonic() - self._last_write_time > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write the waiting copy of best.ckpt, if there is one. Wait for the files of an AsyncCheckpointIO."""
        if isinstance(self.users, AsyncCheckpointIO):
            self.users.teardown()  # the next checkpoint starts its thread again
        if self._waiting_copy is not None:
            (buffer, path), self._waiting_copy = self._waiting_copy, None
            _write(path, lambda file: file.write(buffer.getbuffer()))
            self._last_write_time = time.monotonic()

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.flush()
        self.is_restoring = True
        if self.users is None or Path(path) == self.best or is_resume_point(Path(path)):
            return super().load_checkpoint(path, *args, **kwargs)
        return self.users.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        (self.users or TorchCheckpointIO()).remove_checkpoint(path)

    def teardown(self) -> None:
        self.flush()
        (self.users or TorchCheckpointIO()).teardown()


def _write(target: Path, save: Callable[[IO[bytes]], Any], keep_old: bool = False) -> None:
    """Write a file atomically. With ``keep_old``, an existing file becomes previous.ckpt."""
    try:
        with atomic_write(target) as file:
            save(file)
            if keep_old and target.exists():
                file.flush()
                os.fsync(file.fileno())  # the new file must be on the disk before the old file is renamed
                target.replace(target.with_name(PREVIOUS))
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        fix = "free space on the disk, or choose another folder with --default_root_dir"
        problem = f"cannot write {target} ({cause.strerror or cause}): earlier checkpoints are complete"
        raise CheckpointError(f"{problem}; {fix}") from error


def copy_resume_point(source: Path, target: Path) -> None:
    """Copy a resume point to ``target``, unless this is the same, or a checkpoint that something else has written."""
    is_same = target.exists() and filecmp.cmp(source, target, shallow=False)
    if not is_same and (not target.exists() or is_resume_point(target, if_unreadable=True)):
        with source.open("rb") as file:
            _write(target, lambda copy: shutil.copyfileobj(file, copy))


def is_resume_point(path: Path, if_unreadable: bool = False) -> bool:
    """Return True for a resume point, False for another checkpoint, ``if_unreadable`` for a file that is neither."""
    try:
        return RESUME_STATE in read_any(path, mmap=True).get("callbacks", {})
    except (CheckpointError, TypeError):
        return if_unreadable


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project's models with :func:`read_any`. Raise a CheckpointError for other models."""
    checkpoint = read_any(path)
    if not all(isinstance(checkpoint.get(key), dict) for key in ("lit", "state_dict")):
        needed = "this works for models that are built on LitBase, as docs/your_own.md shows"
        raise CheckpointError(f"{path} does not contain the name of its model: {needed}")
    return checkpoint


def read_any(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of any model to the CPU, without executing its code. Raise a CheckpointError if this fails.

    With ``mmap``, tensors are read from the file only when they are used.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # unpickling may raise any error
        raise CheckpointError(f"{path} is not a checkpoint that can be read safely ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} is a {type(checkpoint).__name__}, not a checkpoint: give a run's .ckpt file")
    return checkpoint


def lacks_calibration(path: Path) -> bool:
    """Return True for a classifier's checkpoint that fit.py has not tried to calibrate, because it was killed."""
    with contextlib.suppress(CheckpointError):
        checkpoint = read_any(path, mmap=True)
        record = {"calibration": None} if MISSING_PARTS in checkpoint else checkpoint.get("lit") or {}
        return record.get("task") == "classification" and "calibration" not in record
    return False


def load_model(checkpoint: dict[str, Any], announce: bool = True) -> LitBase:
    """Return the model of a checkpoint, in evaluation mode on the CPU. Raise a CheckpointError if this fails.

    With ``announce``, print a note if its class is one of the user.
    """
    model_class = find_class(checkpoint["lit"].get("model_class"), LitBase)
    with _explain_errors(model_class, checkpoint):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of constructors matter only for training
            model = _create(model_class, checkpoint, "model", announce)
        model.configure_model()
        LitBase.on_load_checkpoint(model, checkpoint)  # the user's class may override it
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        _validate_metadata(model)
    return model.eval()


def _create(kind: Any, checkpoint: dict[str, Any], role: str, announce: bool = True) -> Any:
    """Create a model or data module with the arguments of the training. Announce a class of the user."""
    if not is_own(kind):
        older = OLDER_ARGUMENTS if "group" in inspect.signature(kind).parameters else {}
        return kind(**older | checkpoint[kind.CHECKPOINT_HYPER_PARAMS_KEY])
    file = getattr(sys.modules[kind.__module__], "__file__", "this program")
    if announce:
        print_once(f"the {role} class is {dotted_path(kind)}, from {file}")
    if (arguments := checkpoint["lit"].get(f"{role}_arguments")) is None:  # not from fit.py: do what Lightning does
        arguments, parameters = checkpoint.get(kind.CHECKPOINT_HYPER_PARAMS_KEY, {}), inspect.signature(kind).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in parameters}
    return create(kind, arguments)


def _validate_metadata(model: LitBase) -> None:
    """Raise an error if class names or preprocessing do not fit the model. Name outputs without a name by number."""
    if (names := model.class_names) is not None:
        outputs = model.hparams.get("num_classes", len(names))
        if len(names) > outputs or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{len(names)} names for {outputs} classes")
        model.class_names = (*names, *map(str, range(len(names), outputs)))
    if model.sample_ndim != 3 or model.preprocessing is None:
        return
    spec = Preprocessing.from_dict(model.preprocessing)
    if not all(type(side) is int and side > 0 for side in (spec.image_size, spec.resize_size)):
        raise ValueError(f"image_size is {spec.image_size}, resize_size is {spec.resize_size}")
    if len(spec.mean) != len(spec.std) or not all(map(math.isfinite, (*spec.mean, *spec.std))) or 0 in spec.std:
        raise ValueError(f"mean is {spec.mean}, std is {spec.std}")
    InterpolationMode(spec.interpolation)
    if reason := model.shape_error((len(spec.mean), spec.image_size, spec.image_size)):
        raise ValueError(reason)


def load_data(checkpoint: dict[str, Any]) -> Any:
    """Create the data module that a checkpoint was trained on. Raise its DataError, or a CheckpointError."""
    if (path := checkpoint["lit"].get("data_class")) is None:
        fix = "evaluate it in your own code, with lit_training.load"
        raise CheckpointError(f"the checkpoint was trained on data loaders without a data module: {fix}")
    data_class = find_class(path, LightningDataModule)
    with _explain_errors(data_class, checkpoint):
        return _create(data_class, checkpoint, "data")


@contextlib.contextmanager
def _explain_errors(kind: type, checkpoint: dict[str, Any]) -> Iterator[None]:
    """Raise a CheckpointError for any exception: wrong values cause many. Keep a DataError of a data module."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) and issubclass(kind, LightningDataModule):
            raise
        reason = " ".join(" ".join((str(error) or type(error).__name__).splitlines()[:2]).split())
        name = dotted_path(kind) if is_own(kind) else kind.__name__
        message = f"the checkpoint does not fit {name}: {reason}{checkpoint.get(MISSING_PARTS, '')}"
        raise CheckpointError(message) from error
