"""Write checkpoints atomically, and read checkpoints without executing code in the file."""

import io
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule
from torchvision.transforms import InterpolationMode

import datamodules
import lit_models
from datamodules import DataError, Preprocessing
from datamodules.files import atomic_write
from lit_models import LitBase
from lit_training.errors import CheckpointError
from lit_training.runs.layout import BEST, LAST, PREVIOUS

SECONDS_BETWEEN_WRITES = 5.0


class FitCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, and limit how often best.ckpt is written.

    The old last.ckpt is renamed to previous.ckpt, so that one of the two files is always complete. A new best.ckpt
    waits in memory if the last one was written less than :data:`SECONDS_BETWEEN_WRITES` ago. It is written to disk
    before any last.ckpt (which contains the path of best.ckpt), before a checkpoint is read, and at the end.
    """

    def __init__(self) -> None:
        self._waiting_copy: tuple[io.BytesIO, Path] | None = None
        self._last_write_time = -float("inf")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. best.ckpt may be written later. Raise a CheckpointError if writing fails."""
        if Path(path).name != BEST:
            self.flush()
            _write(Path(path), lambda file: torch.save(checkpoint, file))
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        self._waiting_copy = buffer, Path(path)
        if time.monotonic() - self._last_write_time > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write the waiting copy of best.ckpt, if there is one."""
        if self._waiting_copy is not None:
            (buffer, path), self._waiting_copy = self._waiting_copy, None
            _write(path, lambda file: file.write(buffer.getbuffer()))
            self._last_write_time = time.monotonic()

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.flush()
        return super().load_checkpoint(path, *args, **kwargs)

    def teardown(self) -> None:
        self.flush()


def _write(target: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Write a file atomically. An existing last.ckpt becomes previous.ckpt."""
    try:
        with atomic_write(target) as file:
            save(file)
            if target.name == LAST and target.exists():
                file.flush()
                os.fsync(file.fileno())  # the new file must be on the disk before the old file is renamed
                target.replace(target.with_name(PREVIOUS))
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"cannot write {target} ({cause.strerror or cause}): earlier checkpoints are complete; "
            "free space on the disk, or choose another folder with --default_root_dir"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project's models with :func:`read_any`. Raise a CheckpointError for other models."""
    checkpoint = read_any(path)
    if not all(isinstance(checkpoint.get(key), dict) for key in ("lit", "state_dict")):
        raise CheckpointError(f"{path} was not written by this project: it does not contain the name of its model")
    return checkpoint


def read_any(path: Path) -> dict[str, Any]:
    """Read a checkpoint of any model to the CPU, without executing its code. Raise a CheckpointError if this fails."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling may raise any error
        raise CheckpointError(f"{path} is not a checkpoint that can be read safely ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} is a {type(checkpoint).__name__}, not a checkpoint: give a run's .ckpt file")
    return checkpoint


def load_model(checkpoint: dict[str, Any]) -> LitBase:
    """Return the model of a checkpoint, in evaluation mode on the CPU. Raise a CheckpointError if this fails."""
    name = checkpoint["lit"].get("model_class")
    model_class = getattr(lit_models, name, None) if name in lit_models.__all__ else None
    if not isinstance(model_class, type) or not issubclass(model_class, LitBase):
        raise CheckpointError(f"the checkpoint contains the model {name}, which this project does not have")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of constructors matter only for training
            model = model_class(**checkpoint["hyper_parameters"])
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        _validate_metadata(model)
    except Exception as error:  # wrong values in the file can cause any exception
        raise _does_not_fit_error(name, error) from error
    return model.eval()


def _validate_metadata(model: LitBase) -> None:
    """Raise an error if class names or preprocessing do not fit the model. Name outputs without a name by number."""
    outputs, names = model.hparams.get("num_classes", 0), model.class_names
    if names is not None:
        if len(names) > outputs or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{len(names)} names for {outputs} classes")
        model.class_names = (*names, *map(str, range(len(names), outputs)))
    if model.sample_ndim != 3:
        return
    if model.preprocessing is None:
        raise ValueError("it has no preprocessing")
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
    name = checkpoint["lit"].get("data_class")
    data_class = getattr(datamodules, name) if name in datamodules.__all__ else None
    if not isinstance(data_class, type) or not issubclass(data_class, LightningDataModule):
        trained_on = name or "data loaders without a data module"
        raise CheckpointError(f"the checkpoint was trained on {trained_on}, which this project does not have")
    try:
        return data_class(**checkpoint["datamodule_hyper_parameters"])
    except DataError:
        raise
    except Exception as error:  # wrong values in the file can cause any exception
        raise _does_not_fit_error(name, error) from error


def _does_not_fit_error(name: str, error: Exception) -> CheckpointError:
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return CheckpointError(f"the checkpoint does not fit {name}: {first_line}")
