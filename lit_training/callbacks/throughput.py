"""Measure the training speed in samples per second."""

import contextlib
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor


def count_samples(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its first tensor, or 0 if there is no tensor."""
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(first, Tensor):
        return first.shape[:1].numel()
    with contextlib.suppress(MisconfigurationException):
        return extract_batch_size(batch)
    return 0


class Throughput(Callback):
    """Log ``samples_per_second`` of all devices once per epoch, without the time of validation."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sample_count, self.validation_seconds, self.start_time = 0, 0.0, time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.sample_count += count_samples(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_start_time = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.validation_seconds += time.monotonic() - self.validation_start_time

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.monotonic() - self.start_time - self.validation_seconds
        speed = self.sample_count * trainer.world_size / max(seconds, 1e-9)
        pl_module.log("samples_per_second", speed, sync_dist=trainer.world_size > 1)
