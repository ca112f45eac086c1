"""Compute the features of a frozen backbone once per picture, and keep them in the user's cache folder."""

import contextlib
import hashlib
import json
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading.device import Tensors, TwoStageDataset
from datamodules.loading.loader import make_loader
from datamodules.loading.module import SplitDataModule
from datamodules.loading.order import PADDING, gather_in_input_order
from datamodules.machine import cache_folder
from datamodules.photos.find import SPLITS
from datamodules.text import print_note, print_once
from lit_models import LitBase, LitTransfer
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.lightning_internals import forget_loaders
from lit_training.runs.own_classes import data_of, why_not_cached
from lit_training.runs.threads import FEATURE_BATCH_SIZE, use_threads
from lit_training.text import progress_bar

FORMAT = 2  # increase it if a change in this project changes the features
MAX_BYTES_IN_MEMORY = 1 << 30  # of all ranks; larger features are in a file, whose pages need not stay in memory
MAX_BYTES = 2 << 30  # of the folder; the files that were not used for the longest time are deleted first


class Features(TwoStageDataset):
    """A dataset with the features (N, F) and labels of the N samples in the dataset ``pictures``.

    A key is an index that may be larger than N-1: it selects the sample ``key % N``. The key PADDING has the label -1.
    """

    samples_per_fetch = 128  # fetch small batches together

    def __init__(self, features: Tensor, pictures: Any) -> None:
        self.features, self.pictures, self.labels = features, pictures, pictures.labels

    def read(self, keys: Tensor) -> Tensors:
        rows = keys % len(self)
        return self.features.index_select(0, rows), self.labels[rows].masked_fill(keys == PADDING, PADDING)


class FeatureCache(Callback):
    """Replace the datasets of photos by datasets of their features, if the backbone is frozen.

    Metrics and weights change by less than 1e-5. The callback does nothing if the photos are augmented, if the head is
    not the last layer, or if code of the user may need the pictures.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = data_of(trainer)
        if not isinstance(pl_module, LitBase) or not isinstance(data, SplitDataModule) or data.photos is None:
            return
        if not pl_module.fixed_features or data.augment or isinstance(data.dataset("train"), Features):
            return
        if reason := why_not_cached(pl_module, data, trainer.callbacks):  # type: ignore[attr-defined]
            print_note(f"the features of the frozen backbone are computed in each epoch, because {reason}")
            return
        pl_module.on_fit_start()  # it loads the weights; Lightning would call it too late, after the callbacks
        threads: Any = getattr(trainer, "threads", None) or [torch.get_num_threads()]
        used_folder: Path | None = None
        with evaluation_mode(pl_module), use_threads(threads[-1]):
            files = _files_of(trainer, pl_module, data) if trainer.is_global_zero else {}
            for split in ("train", "val"):
                pictures: Any = data.dataset(split)
                file = files.get(split)
                if not len(pictures):
                    continue
                features = trainer.strategy.broadcast(read_features(file) if file else None)
                if features is not None:
                    used_folder = file and file.parent
                else:
                    features = _compute_features(trainer, pl_module, data, split)
                    if features is None:
                        break
                    if file and features.untyped_storage().filename is None:  # a large one is a file without a name
                        write_features(file, features)
                data.sets[split] = Features(features, pictures)
        if used_folder and trainer.progress_bar_callback is not None:
            print(f"features of an earlier run are used again, from {used_folder}", flush=True)
        forget_loaders(trainer)  # schedules that need the number of steps create loaders with the old data


def _compute_features(trainer: Trainer, model: LitBase, data: SplitDataModule, split: str) -> Tensor | None:
    """Return the features (N, F) of all pictures on each rank, or None if the model cannot compute features."""
    dataset: Any = data.dataset(split)
    options: Any = {"seed": 0, "train": False, "num_workers": data.num_workers(dataset)}
    loader: Any = make_loader(dataset, trainer, batch_size=FEATURE_BATCH_SIZE, **options)
    features, done = None, 0
    show_bar = trainer.is_global_zero and trainer.progress_bar_callback is not None
    with progress_bar(f"features of {split}", show_bar) as progress:
        for x, _ in loader:
            with trainer.precision_plugin.forward_context():
                batch_features = model.features(trainer.precision_plugin.convert_input(x.to(model.device)))
            if batch_features is None:
                return None
            rows = gather_in_input_order(trainer, batch_features, loader)[: len(dataset) - done].cpu()
            if features is None:
                features = _make_tensor(trainer, (len(dataset), rows.shape[1]), rows.dtype)
                if features is None:
                    return None
            features[done : done + len(rows)] = rows
            done += len(rows)
            progress(done, len(dataset))
    return features


def _make_tensor(trainer: Trainer, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Return an empty tensor. If it is large, it is a file without a name, which the ranks of a machine share.

    Return None with a note if the disk is full.
    """
    count, strategy, features, problem = math.prod(shape), trainer.strategy, None, ""
    size = count * dtype.itemsize
    if size * trainer.num_devices <= MAX_BYTES_IN_MEMORY:
        return torch.empty(shape, dtype=dtype)
    path = Path(f"features.{strategy.broadcast(os.getpid())}")
    try:
        path = cache_folder() / path
        if trainer.local_rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # if the disk became full later, a signal would kill the process
                    os.posix_fallocate(file.fileno(), 0, size)
    except (OSError, DataError) as error:
        problem = f" ({error})"
    if strategy.reduce_boolean_decision(not problem):
        features = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
        strategy.barrier("features")
    else:
        print_note(
            f"features are computed in each epoch: their file of {size / 2**30:.2g} GB cannot be written{problem}"
        )
    if trainer.local_rank == 0:
        path.unlink(missing_ok=True)
    return features


def _files_of(trainer: Trainer, model: Any, data: Any) -> dict[str, Path]:
    """Return split -> its file, or {} if features are not kept. The name is a hash of all that decides the features."""
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


def write_features(path: Path, features: Tensor) -> None:
    """Write the file and delete old files. If this fails, print why: a run does not need the file."""
    try:
        with atomic_write(path) as out:
            out.write(save({"features": features}, {"checksum": _checksum(path, features)}))
    except OSError as error:
        print_once(f"features are not kept for later runs: cannot write to {path.parent} ({error.strerror})")
        return
    with contextlib.suppress(OSError):  # another run may delete the same files
        size = 0
        for file in sorted(path.parent.iterdir(), key=lambda file: -file.stat().st_mtime):
            size += file.stat().st_size
            if size > MAX_BYTES:
                file.unlink()


def _checksum(path: Path, features: Tensor) -> str:
    return hashlib.sha256(save({path.name: features})).hexdigest()
