"""The Trainer of a training run."""

from pathlib import Path

from lit_training.runs.folder import RunStart
from lit_training.runs.lightning_internals import ConnectedTrainer


class FitTrainer(ConnectedTrainer):
    """A Trainer that sends the start of the run from rank 0 to all other ranks, with any launcher."""

    start: RunStart | None = None
    """Chosen by rank 0. The other ranks have it after the processes are connected."""

    def choose_checkpoint(self) -> Path | None:
        """Return the resume point that rank 0 chose, or None. Exit if the run is already complete."""
        if self.start is None:
            return None
        self.start = self.strategy.broadcast(self.start)
        if self.start.finished:
            raise SystemExit(0)
        return self.start.checkpoint
