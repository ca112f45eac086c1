"""Write checkpoints that are never half there, and open them without executing anything."""

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

KEPT = {LAST: PREVIOUS}
"""Files whose older version is kept, and under which name."""
LAZY = BEST
SECONDS_BETWEEN_WRITES = 5.0


class FitCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and the best epoch's seldom enough to cost nothing.

    A reader sees the old file or the new one. Where :data:`KEPT` keeps the older version too, one of the two names
    always holds a whole file. :data:`LAZY` is copied in memory at once; it is written when the last write is
    :data:`SECONDS_BETWEEN_WRITES` old, before any other checkpoint (whose state says that this one exists), before it
    is read, and at the end.
    """

    def __init__(self) -> None:
        self._pending: tuple[io.BytesIO, Path] | None = None
        self._written = -float("inf")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, or keep a copy of it to be written later.

        Raises:
            CheckpointError: the place cannot be written, or the disk is full.
        """
        if Path(path).name != LAZY:
            self.flush()
            _write(Path(path), lambda file: torch.save(checkpoint, file))
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        self._pending = buffer, Path(path)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending is not None:
            (buffer, path), self._pending = self._pending, None
            _write(path, lambda file: file.write(buffer.getbuffer()))
            self._written = time.monotonic()

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.flush()
        return super().load_checkpoint(path, *args, **kwargs)

    def teardown(self) -> None:
        self.flush()


def _write(target: Path, save: Callable[[IO[bytes]], Any]) -> None:
    try:
        with atomic_write(target) as file:
            save(file)
            if target.name in KEPT and target.exists():
                file.flush()
                os.fsync(file.fileno())  # the new one is on the disk before the old one moves
                target.replace(target.with_name(KEPT[target.name]))
    except (OSError, RuntimeError) as error:  # torch makes the latter of a full disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"cannot write {target} ({cause.strerror or cause}): what was there before is whole; "
            "free the place or choose another with --default_root_dir"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint of a model of this project; nothing in it is executed.

    Raises:
        CheckpointError: it does not say which model it holds, or cannot be read safely.
    """
    checkpoint = read_any(path)
    if not all(isinstance(checkpoint.get(key), dict) for key in ("lit", "state_dict")):
        raise CheckpointError(f"{path} was not written by this project: it does not say which model it holds")
    return checkpoint


def read_any(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint of whatever model, as tensors and plain values; nothing in it is executed.

    Raises:
        CheckpointError: it cannot be read safely, or holds something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling has many ways to fail
        raise CheckpointError(f"{path} is no checkpoint that can be read safely ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, no checkpoint: give a run's .ckpt file")
    return checkpoint


def load_model(checkpoint: dict[str, Any]) -> LitBase:
    """The model of a checkpoint, in evaluation mode on the CPU.

    Raises:
        CheckpointError: a model that this project does not have, or weights that do not fit it.
    """
    name = checkpoint["lit"].get("model_class")
    model_class = getattr(lit_models, name, None) if name in lit_models.__all__ else None
    if not isinstance(model_class, type) or not issubclass(model_class, LitBase):
        raise CheckpointError(f"the checkpoint holds a {name}, which this project does not have")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to who trains
            model = model_class(**checkpoint["hyper_parameters"])
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        validate_metadata(model)
    except Exception as error:  # what a file says may be anything
        raise CheckpointError(f"the checkpoint does not fit {name}: {_first_line(error)}") from error
    return model.eval()


def validate_metadata(model: LitBase) -> None:
    """Look at what else a checkpoint says: a name for each output, which may have none, and the preprocessing.

    Raises:
        ValueError, TypeError: it is not what a network and its inputs need.
    """
    outputs, names = model.hparams.get("num_classes", 0), model.class_names
    if names is not None:
        if len(names) > outputs or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{len(names)} names for {outputs} classes")
        model.class_names = (*names, *map(str, range(len(names), outputs)))
    if model.sample_ndim != 3:
        return
    if model.preprocessing is None:
        raise ValueError("no preprocessing")
    spec = Preprocessing.from_dict(model.preprocessing)
    if not all(type(side) is int and side > 0 for side in (spec.image_size, spec.resize_size)):
        raise ValueError(f"pictures of {spec.image_size} pixels")
    if len(spec.mean) != len(spec.std) or not all(map(math.isfinite, (*spec.mean, *spec.std))) or 0 in spec.std:
        raise ValueError(f"mean {spec.mean} and std {spec.std}")
    InterpolationMode(spec.interpolation)
    if reason := model.refuse_shape((len(spec.mean), spec.image_size, spec.image_size)):
        raise ValueError(reason)


def load_data(checkpoint: dict[str, Any]) -> Any:
    """The data module that a checkpoint was trained on, not yet set up.

    Raises:
        CheckpointError: it was trained on data that is not one of this project's data modules.
    """
    name = checkpoint["lit"].get("data_class")
    data_class = getattr(datamodules, name) if name in datamodules.__all__ else None
    if not isinstance(data_class, type) or not issubclass(data_class, LightningDataModule):
        raise CheckpointError(
            f"the checkpoint was trained on {name or 'loaders of its own'}: its data is not known here"
        )
    try:
        return data_class(**checkpoint["datamodule_hyper_parameters"])
    except DataError:
        raise
    except Exception as error:  # what a file says may be anything
        raise CheckpointError(f"the checkpoint does not fit {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
