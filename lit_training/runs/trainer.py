"""The Trainer of scripts/fit.py."""

from pathlib import Path

import torch

from lit_training.runs.folder import RunStart
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
        self.start.apply_to(getattr(self, "datamodule", None))
        return self.start.checkpoint
