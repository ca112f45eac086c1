"""The Trainer of scripts/fit.py."""

from pathlib import Path

from lit_training.runs.folder import RunStart
from lit_training.runs.lightning_internals import ConnectedTrainer


class FitTrainer(ConnectedTrainer):
    """A Trainer that sends :attr:`start` (the run's folder and resume point) from rank 0 to all other ranks."""

    start: RunStart | None = None
    """Rank 0 chooses it. The other ranks receive it when the processes are connected."""

    def choose_checkpoint(self) -> Path | None:
        """Return the checkpoint that rank 0 chose, or None for a new run. Exit if the run is already complete."""
        if self.start is None:
            return None
        self.start = self.strategy.broadcast(self.start)
        if self.start.finished:
            raise SystemExit(0)
        return self.start.checkpoint
