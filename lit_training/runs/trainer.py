"""The Trainer of scripts/fit.py."""

from pathlib import Path
from typing import Any

import torch

from lit_training.runs.folder import RunStart
from lit_training.runs.layout import SPLIT
from lit_training.runs.lightning_internals import ConnectedTrainer


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
        data: Any = getattr(self, "datamodule", None)
        own = {"batch_size": self.start.batch_size, "group": self.start.group}
        if hasattr(data, "began") and (split_file := self.start.folder / SPLIT).is_file():
            data.began = str(split_file)  # rank 0 has compared its photos with this file
        for attributes in (vars(data), data.hparams) if any(own.values()) else ():
            attributes.update({name: value for name, value in own.items() if value and name in attributes})
        return self.start.checkpoint
