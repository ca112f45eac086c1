"""The Trainer of a fit."""

from pathlib import Path

from lit_training.runs.folder import Start
from lit_training.runs.lightning_internals import ConnectedTrainer


class FitTrainer(ConnectedTrainer):
    """A Trainer in which rank 0 tells all others what a fit goes on from, however they were launched."""

    start: Start | None = None
    """Rank 0's choice; after the processes are connected, everybody's."""

    def choose_checkpoint(self) -> Path | None:
        if self.start is None:
            return None
        self.start = self.strategy.broadcast(self.start)
        if self.start.finished:
            raise SystemExit(0)
        return self.start.checkpoint
