"""Writing checkpoints that are never half there, and opening them without trusting them."""

import contextlib
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule
from torchvision.transforms import InterpolationMode

import datamodules
import lit_models
from datamodules import DataError
from lit_models import LitBase


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or written: one line that ends with what to type."""


BEFORE = {"last.ckpt": "previous.ckpt"}
"""Files whose older version is kept, and under which name."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, fsyncs and renames: a reader sees the old file or the new one, whole.

    Where :data:`BEFORE` keeps the older version too, one of the two names always holds a whole file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name in BEFORE and target.exists():
                target.replace(target.with_name(BEFORE[target.name]))
            part.replace(target)
        except (OSError, RuntimeError) as error:  # torch makes the latter of a full disk
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise CheckpointError(
                f"cannot write {target} ({cause.strerror or cause}): what was there before is whole; "
                "free the place or choose another with --default_root_dir"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # gone already, or the place cannot be written at all
                part.unlink()
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk too, where the system can open a folder (Windows cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def find(run: str, root: str = ".") -> Path:
    """The checkpoint that ``run`` names: a file, a run's folder (its best), or ``latest``.

    Raises:
        CheckpointError: there is none.
    """
    if run == "latest":
        runs = (Path(root) / "lightning_logs").glob("version_*/checkpoints/*.ckpt")
        newest = max(runs, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise CheckpointError(f"no run under {Path(root) / 'lightning_logs'} yet: python scripts/fit.py")
        path = newest.parent.parent
    else:
        path = Path(run).expanduser()
    if path.is_file():
        return path
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt"):
        if (path / name).is_file():
            return path / name
    what = "holds no checkpoint" if path.exists() else "is not there"
    raise CheckpointError(f"{run} {what}: give a run's folder, a .ckpt file, or latest")


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
        _check_what_is_told(model)
    except Exception as error:  # what a file says may be anything
        raise CheckpointError(f"the checkpoint does not fit {name}: {_first_line(error)}") from error
    return model.eval()


def _check_what_is_told(model: LitBase) -> None:
    """Look at what else a checkpoint says: a name for each output, which may have none, and the preprocessing.

    Raises:
        ValueError, TypeError, KeyError: it is not what a network and its inputs need.
    """
    outputs, names, spec = model.hparams.get("num_classes", 0), model.class_names, model.preprocessing
    if names is not None:
        if len(names) > outputs or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{len(names)} names for {outputs} classes")
        model.class_names = (*names, *map(str, range(len(names), outputs)))
    if model.sample_ndim != 3:
        return
    if spec is None:
        raise ValueError("no preprocessing")
    size, mean, std = spec["image_size"], spec["mean"], spec["std"]
    if not all(type(side) is int and side > 0 for side in (size, spec["resize_size"])):
        raise ValueError(f"pictures of {size} pixels")
    if len(mean) != len(std) or not all(math.isfinite(value) for value in (*mean, *std)) or 0 in std:
        raise ValueError(f"mean {mean} and std {std}")
    InterpolationMode(spec["interpolation"])
    if reason := model.refuse_shape((len(mean), size, size)):
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
