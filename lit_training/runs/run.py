"""One fit of scripts/fit.py."""

from dataclasses import dataclass
from typing import Any

from lit_training.runs.folder import Start
from lit_training.runs.foreign import promises
from lit_training.runs.processes import Watch


@dataclass
class Run:
    """What is trained on what, where it is written and who watches it; ``FitCLI`` builds it from a command line."""

    config: Any
    """The whole configuration, a jsonargparse Namespace; what the data decides is filled in."""
    model: Any
    """A LightningModule."""
    data: Any
    """A LightningDataModule."""
    watch: Watch
    resume: str = "never"
    """What was typed for ``--resume``."""
    quiet: bool = False
    """Print the result alone."""
    start: Start | None = None
    """The run's folder and what it goes on from; None where nothing is written."""
    trainer: Any = None
    """The Trainer; None until the rest is known."""

    @property
    def validates(self) -> bool:
        """Whether anything is validated on."""
        has_val = promises(self.data).hparams.get("val_size", 1) != 0
        return has_val and self.config["trainer"]["limit_val_batches"] != 0

    @property
    def monitor(self) -> tuple[str | None, str]:
        """The metric that decides which epoch is best, and ``max`` or ``min``."""
        if not self.validates:
            return "train_loss", "min"
        task = promises(self.model).task
        if task is None:  # a model of your own may log anything: its last epoch counts as its best
            return None, "min"
        return ("val_acc", "max") if task == "classification" else ("val_loss", "min")

    @property
    def goes_on(self) -> bool:
        """Whether it goes on from a resume point, or has nothing to do."""
        return self.start is not None and (self.start.finished or self.start.checkpoint is not None)
