"""The Trainer of a training run."""

from pathlib import Path

from lit_training.runs.folder import RunStart
from lit_training.runs.lightning_internals import ConnectedTrainer


class FitTrainer(ConnectedTrainer):
    """A Trainer whose rank 0 sends the resume point to all other ranks, however they were launched."""

    start: RunStart | None = None
    """Rank 0's choice; on all ranks once the processes are connected."""

    def choose_checkpoint(self) -> Path | None:
        if self.start is None:
            return None
        self.start = self.strategy.broadcast(self.start)
        if self.start.finished:
            raise SystemExit(0)
        return self.start.checkpoint
