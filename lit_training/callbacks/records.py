"""Record how a run was started: settings, command, versions, machine, and the split of each photo."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.files import atomic_write
from datamodules.loading.order import TrainSampler
from datamodules.photos.folder import Photos
from lit_models.base import class_record
from lit_training.runs.hashes import hash_file
from lit_training.runs.layout import CONFIG, LEFT_OUT, RECORD, SPLIT
from lit_training.runs.own_classes import data_of

RECORDED_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow", "jsonargparse")


def fingerprint(loader: Any) -> str:
    """Return a hash of the number of training samples, all labels, and the first, middle and last sample.

    For data loaders that are not from this project, hash only the number of samples, because reading a sample may use
    random numbers and change the training.
    """
    dataset: Any = getattr(loader, "dataset", None)
    digest = hashlib.sha256(str(len(dataset) if isinstance(dataset, Sized) else None).encode())
    if isinstance(getattr(loader, "sampler", None), TrainSampler):
        labels = getattr(dataset, "labels", None)
        if isinstance(labels, Tensor):
            digest.update(labels.cpu().contiguous().numpy())  # type: ignore[arg-type]  # no copy of a large dataset's labels
        for tensor in dataset.__getitems__([0, len(dataset) // 2, len(dataset) - 1]):
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def fingerprint_batch(batch: Any) -> str:
    """Return a hash of the tensors in a batch."""
    digest = hashlib.sha256()
    apply_to_collection(batch, Tensor, lambda tensor: digest.update(_bytes(tensor)), allow_frozen=True)
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16


class RunRecords(Callback):
    """Write ``config.yaml``, ``split.csv`` with the split of each photo, and ``left_out.csv`` with unused photos.

    At each start, add the command, versions, machine, git state and data fingerprint to ``run.json``. ``dump_config``
    returns the text of config.yaml.
    """

    def __init__(self, dump_config: Callable[[], str]) -> None:
        self.dump_config = dump_config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["lit"] = class_record(pl_module, getattr(trainer, "datamodule", None))  # a LitBase does it too

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder, photos = Path(str(trainer.log_dir)), data_of(trainer).photos
        with atomic_write(folder / CONFIG, "w") as file:  # --resume auto finds a run by it, also if it is killed here
            file.write(self.dump_config())
        if isinstance(photos, Photos):
            photos.write_split(folder / SPLIT)
            if photos.left_out:
                photos.write_left_out(folder / LEFT_OUT)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        path = Path(str(trainer.log_dir)) / RECORD
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            starts = []
        device, fixes = trainer.strategy.root_device, Path(data_of(trainer).hparams.get("fixes") or "").expanduser()
        starts.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": shlex.join(sys.argv),
                "from_step": trainer.global_step,
                "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
                "data": fingerprint(trainer.train_dataloader),
                "fixes": hash_file(fixes) if fixes.is_file() else None,
                "python": platform.python_version(),
                "packages": {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
                "machine": {
                    "system": platform.platform(),
                    "cpus": os.cpu_count(),
                    "threads": torch.get_num_threads(),
                    "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                    "processes": trainer.world_size,
                },
                "git": _git_state(),
            }
        )
        with atomic_write(path, "w") as file:
            file.write(json.dumps(starts, indent=1) + "\n")


def _git_state() -> dict[str, Any] | None:
    """Return the ``commit`` of this project and its ``changed`` files, or None if git cannot read them."""
    settings: Any = {"cwd": Path(__file__).resolve().parent, "capture_output": True, "text": True, "timeout": 10}
    try:
        commit, changes = (
            subprocess.run(["git", *arguments], check=True, **settings).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": [line[3:] for line in changes.splitlines()]}
