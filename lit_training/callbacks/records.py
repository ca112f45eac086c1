"""Record how a run was made: command, versions, machine, and which photo is in which split."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.files import atomic_write
from datamodules.loading.order import TrainSampler
from datamodules.photos.folder import Photos
from lit_training.runs.foreign import data_of
from lit_training.runs.layout import LEFT_OUT, RECORD, SPLIT

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow", "jsonargparse")


def fingerprint(loader: Any) -> str:
    """Return a hash of the training data: the number of samples, all labels, and the first, middle and last sample.

    A large folder would take too long to read, so a changed pixel in another sample is not noticed. For loaders from
    outside this project only the number of samples counts, because reading a sample may draw random numbers.
    """
    dataset: Any = getattr(loader, "dataset", None)
    digest = hashlib.sha256(str(len(dataset) if isinstance(dataset, Sized) else None).encode())
    if isinstance(getattr(loader, "sampler", None), TrainSampler):
        labels = getattr(dataset, "labels", None)
        if isinstance(labels, Tensor):
            digest.update(labels.cpu().numpy().tobytes())
        for part in dataset.__getitems__([0, len(dataset) // 2, len(dataset) - 1]):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class Provenance(Callback):
    """Write ``run.json``: for each start of the run its command, versions, machine, git state and data fingerprint."""

    def __init__(self, run: Path) -> None:
        self.path = run / RECORD

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        try:
            starts = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            starts = []
        device = trainer.strategy.root_device
        starts.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": shlex.join(sys.argv),
                "from_step": trainer.global_step,
                "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
                "data": fingerprint(trainer.train_dataloader),
                "python": platform.python_version(),
                "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                "machine": {
                    "system": platform.platform(),
                    "cpus": os.cpu_count(),
                    "threads": torch.get_num_threads(),
                    "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                    "processes": trainer.world_size,
                },
                "git": _git(),
            }
        )
        with atomic_write(self.path, "w") as file:
            file.write(json.dumps(starts, indent=1) + "\n")


def _git() -> dict[str, Any] | None:
    """Return the commit of this code and the files that differ from it, or None outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        commit, changes = (
            subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": [line[3:] for line in changes.splitlines()]}


class PhotoRecords(Callback):
    """Write which photo is in which split (``split.csv``) and which photos were left out (``left_out.csv``)."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # a collective operation: all ranks must call it
        photos = data_of(trainer).photos
        if trainer.is_global_zero and folder is not None and isinstance(photos, Photos):
            photos.write_split(Path(folder) / SPLIT)
            if photos.left_out:
                photos.write_left_out(Path(folder) / LEFT_OUT)
