"""Keep computed features in the user's cache folder, so that a resumed run or another run can use them again."""

import contextlib
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.image_folder import ImageFolderDataModule
from datamodules.machine import cache_folder
from datamodules.photos.find import SPLITS
from lit_models import LitTransfer
from lit_training.runs.threads import FEATURE_BATCH_SIZE

FORMAT = 1  # increase it if a change in this project changes the features
MAX_BYTES = 2 << 30
"""Maximum size of the folder. The files that were not used for the longest time are deleted first."""


def feature_files(trainer: Trainer, model: Any, data: Any) -> dict[str, Path]:
    """Return the files for the features of the splits train and val, or {} if features are not kept. Call it on rank 0.

    The name of a file is a hash of all that decides the bits of the features: the photos, in order, their
    preprocessing, the frozen weights, the precision, the device, the number of threads and the library versions.
    """
    # the code of other classes can change between two runs, and other strategies split the weights
    known = type(model) is LitTransfer and type(data) is ImageFolderDataModule
    if not known or not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        return {}
    device, backbone = trainer.strategy.root_device, model.hparams["backbone"]
    libraries = ["torch", "torchvision", "pillow"] + ["timm"] * backbone.startswith("timm/")
    settings = [FORMAT, FEATURE_BATCH_SIZE, backbone, model.hparams["average_flips"], data.hparams["cache"]]
    settings += [data.preprocessing.to_dict(), trainer.precision, torch.get_float32_matmul_precision()]
    settings += [trainer.num_nodes, device.type, platform.machine(), torch.backends.cpu.get_cpu_capability()]
    settings += [torch.get_num_threads(), *map(version, libraries)]
    if device.type == "cuda":
        settings += [torch.cuda.get_device_name(device), torch.backends.cudnn.version(), torch.version.cuda]
        settings += [torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()]
    common = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in [*model.net.named_parameters(), *model.net.named_buffers()]:
        if not tensor.requires_grad:  # the head is trained
            common.update(save({name: tensor.contiguous()}))
    files = {}
    with contextlib.suppress(DataError):  # there is no home folder
        for split in ("train", "val"):
            digest = common.copy()  # the weights of a large network take seconds to hash
            digest.update(data.photos.sha256[data.photos.select(SPLITS.index(split))].tobytes())
            files[split] = cache_folder() / "features" / f"{digest.hexdigest()}.safetensors"
    return files


def read_features(path: Path) -> Tensor | None:
    """Return the features, or None if the file is missing, damaged, or has another content than its name says."""
    with contextlib.suppress(Exception):  # the errors for broken files have no common class
        with safe_open(path, "pt") as file:
            features, checksum = file.get_tensor("features"), file.metadata()["checksum"]
        if checksum == _checksum(path, features):
            path.touch()
            return features
    return None


def write_features(path: Path, features: Tensor) -> bool:
    """Write the file and delete old files. If this fails, print why and return False: a run does not need the file."""
    try:
        with atomic_write(path) as out:
            out.write(save({"features": features}, {"checksum": _checksum(path, features)}))
    except OSError as error:
        reason = f"cannot write to {path.parent} ({error.strerror})"
        print(f"note: features are not kept for later runs: {reason}", file=sys.stderr, flush=True)
        return False
    with contextlib.suppress(OSError):  # another run may delete the same files
        size = 0
        for file in sorted(path.parent.iterdir(), key=lambda file: -file.stat().st_mtime):
            size += file.stat().st_size
            if size > MAX_BYTES:
                file.unlink()
    return True


def _checksum(path: Path, features: Tensor) -> str:
    return hashlib.sha256(save({path.name: features})).hexdigest()
