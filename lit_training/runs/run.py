"""One training run of scripts/fit.py."""

from dataclasses import dataclass
from typing import Any

from lit_training.runs.folder import RunStart
from lit_training.runs.foreign import with_default_attributes
from lit_training.runs.processes import Watch


@dataclass
class Run:
    """Everything that one training run consists of. ``FitCLI`` builds it from a command line."""

    config: Any
    """The whole configuration, a jsonargparse Namespace, with the values that depend on the data."""
    model: Any
    """A LightningModule."""
    data: Any
    """A LightningDataModule."""
    watch: Watch
    resume: str = "never"
    """The value of ``--resume``."""
    quiet: bool = False
    """True to print only the result."""
    start: RunStart | None = None
    """The run's folder and resume point; None if the run writes no files."""
    trainer: Any = None
    """The Trainer; None until it is built."""

    @property
    def validates(self) -> bool:
        """True if the run validates."""
        has_val = with_default_attributes(self.data).hparams.get("val_size", 1) != 0
        return has_val and self.config["trainer"]["limit_val_batches"] != 0

    @property
    def monitor(self) -> tuple[str | None, str]:
        """The metric that decides which epoch is the best, and ``max`` or ``min``."""
        if not self.validates:
            return "train_loss", "min"
        task = with_default_attributes(self.model).task
        if task is None:  # a model from outside this project may log anything: the last epoch counts as the best
            return None, "min"
        return ("val_acc", "max") if task == "classification" else ("val_loss", "min")

    @property
    def is_resumed(self) -> bool:
        """True if the run resumes, or is finished."""
        return self.start is not None and (self.start.finished or self.start.checkpoint is not None)
