"""The parts of one training run of scripts/fit.py."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_training.runs.folder import RunStart
from lit_training.runs.foreign import with_default_attributes
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
