"""The Trainer of scripts/fit.py."""

from pathlib import Path

import torch

from lit_training.runs.folder import RunStart
from lit_training.runs.lightning_internals import ConnectedTrainer


class FitTrainer(ConnectedTrainer):
    """A Trainer that sends :attr:`start` (the run's folder and resume point) from rank 0 to all other ranks."""

    start: RunStart | None = None
    """Rank 0 chooses it. The other ranks receive it when the processes are connected."""

    threads: tuple[int, int] | None = None
    """For training, and for computing features. All ranks use the numbers of rank 0."""

    chosen_threads: tuple[int, int] | None = None
    """What a new run would use. A resumed run may have other :attr:`threads`, because sums depend on them."""

    def choose_checkpoint(self) -> Path | None:
        """Return the checkpoint that rank 0 chose, or None for a new run. Exit if the run is already complete."""
        self.start, self.threads = self.strategy.broadcast((self.start, self.threads))
        if self.threads is not None:
            torch.set_num_threads(self.threads[0])
        if self.start is None:
            return None
        if self.start.finished:
            raise SystemExit(0)
        return self.start.checkpoint
