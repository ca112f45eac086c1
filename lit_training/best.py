"""The best epoch's checkpoint, kept in memory and written seldom enough to cost nothing."""

import copy
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils._pytree import tree_map

SECONDS_BETWEEN_WRITES = 5.0


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: the epoch with the best monitored metric.

    An improvement is copied in memory at once. It is written when the last write is
    :data:`SECONDS_BETWEEN_WRITES` old, at the end, before an exception leaves the Trainer, and before any other
    checkpoint is taken, whose state says that this one exists.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        super().__init__(filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self.on_train_batch_end = None  # type: ignore[assignment]  # it looks at epochs only; Lightning calls what is callable
        self._pending: dict[str, Any] | None = None
        self._copying = False
        self._written = -float("inf")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._trainer, self._filepath = trainer, filepath
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        self._copying = True
        dumped = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
        self._copying = False
        self._pending = tree_map(_copied, dumped)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write what is pending, on the rank that writes."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._trainer.strategy.save_checkpoint(pending, self._filepath)
            self._written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        if not self._copying:
            self.flush()
        return super().state_dict()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.flush()
        trainer.strategy.barrier("best.ckpt")  # no rank may open it before it is written

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self.flush()


def _copied(value: Any) -> Any:
    """Tensors in the computer's own memory: a GPU's would have to hold weights and optimizer twice."""
    return value.to("cpu", copy=True) if isinstance(value, torch.Tensor) else copy.deepcopy(value)
