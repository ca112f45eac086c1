"""One training run of scripts/fit.py: its parts, and its Trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_training.runs.folder import RunStart
from lit_training.runs.lightning_internals import ConnectedTrainer
from lit_training.runs.own_classes import with_default_attributes
from lit_training.runs.processes import Watch


@dataclass
class Run:
    """The configuration and the objects of one training run. ``FitCLI`` creates it from a command line."""

    config: Any  # the full configuration: a jsonargparse Namespace that includes values computed from the data
    model: Any  # a LightningModule
    data: Any  # a LightningDataModule
    watch: Watch
    resume: str = "never"
    quiet: bool = False
    report: bool = True
    photos: str | None = None  # the new place of a resumed run's photos
    start: RunStart | None = None  # None if the run writes no files
    trainer: Any = None  # None until FitCLI creates it

    def __deepcopy__(self, memo: Any) -> "Run":
        return self  # a copy of the model, as averaged weights make it, has a schedule of the same run

    @property
    def validates(self) -> bool:
        """True if the run has validation data and uses it. With ``--folds`` all data is trained on at the end."""
        if self.config.get("folds"):
            return False
        has_val = with_default_attributes(self.data).hparams.get("val_size", 1) != 0
        has_val &= is_overridden("val_dataloader", self.model if self.data is None else self.data)
        has_val &= is_overridden("validation_step", self.model)
        return has_val and self.config["trainer"]["limit_val_batches"] != 0

    @property
    def monitor(self) -> tuple[str | None, str]:
        """The metric that decides which epoch is the best, and ``max`` or ``min``. None: the last one."""
        if self.config.get("folds"):
            return None, "min"
        if typed := self.config.get("monitor"):
            name, _, mode = typed.rpartition(":")
            return name, mode
        if not self.validates:
            return "train_loss", "min"
        task = with_default_attributes(self.model).task
        if task not in ("classification", "regression"):  # it may log any metric: the last epoch counts as the best
            return None, "min"
        return ("val_acc", "max") if task == "classification" else ("val_loss", "min")


class FitTrainer(ConnectedTrainer):
    """A Trainer that sends :attr:`start` (the run's folder and resume point) and the threads from rank 0 to all."""

    start: RunStart | None = None  # rank 0 chooses it
    threads: tuple[int, int] | None = None  # for training, and for computing features; rank 0 chooses them
    chosen_threads: tuple[int, int] | None = None  # those of a new run; a resumed run keeps its own

    @property
    def log_dir(self) -> str | None:
        """The run's folder, whatever the first logger is. Without such a folder: that of Lightning."""
        return super().log_dir if self.start is None else str(self.start.folder)

    def choose_checkpoint(self) -> Path | None:
        """Return the checkpoint that rank 0 chose, or None for a new run. Exit if the run is already complete."""
        self.start, self.threads = self.strategy.broadcast((self.start, self.threads))
        if self.threads is not None:
            torch.set_num_threads(self.threads[0])
        if self.start is None:
            return None
        if self.start.finished:
            raise SystemExit(0)
        self.start.apply_to(getattr(self, "datamodule", None))
        return self.start.checkpoint
