"""Build torch's learning rate schedules for ``--lr_scheduler``, with the length of the run."""

import math
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from lit_training.errors import UsageError
from lit_training.runs.best_epoch import MODES
from lit_training.runs.run import Run

SCHEDULES = (StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau)
ARGUMENTS_FROM_RUN = dict.fromkeys(("T_max", "total_steps", "epochs", "steps_per_epoch"), "--max_epochs")
ARGUMENTS_FROM_RUN |= {"optimizer": "--optimizer", "max_lr": "--optimizer.lr, or --model.lr without --optimizer"}
"""Arguments of schedules that users cannot set -> the flag by which the run sets them."""


def build_schedule(optimizer: Optimizer, schedule: type, arguments: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return Lightning's scheduler dict for the ``optimizer`` of a run."""
    trainer = run.model.trainer
    if schedule is OneCycleLR:
        rates = [group["lr"] for group in optimizer.param_groups]
        cycle = OneCycleLR(optimizer, rates, total_steps=_count_steps(trainer, schedule), **arguments)
        return {"scheduler": cycle, "interval": "step"}
    if schedule is CosineAnnealingLR:
        epochs = trainer.max_epochs or -1
        if epochs < 0:
            trainer.fit_loop.setup_data()  # sets num_training_batches
            steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            epochs = math.ceil(_count_steps(trainer, schedule) / steps_per_epoch)
        return {"scheduler": CosineAnnealingLR(optimizer, epochs, **arguments)}
    monitor = "val_loss" if run.validates else "train_loss"
    if run.config["monitor"] and "mode" in arguments:
        monitor, arguments["mode"] = run.config["monitor"].rsplit(":", 1)
    # ReduceLROnPlateau must step only after a validation, because only then val_loss has a new value.
    waits_for_validation = schedule is ReduceLROnPlateau and not monitor.startswith("train")
    frequency = trainer.check_val_every_n_epoch or 1 if waits_for_validation else 1
    options = {"monitor": monitor, "frequency": frequency, "strict": monitor in MODES}
    return {"scheduler": schedule(optimizer, **arguments), **options}


def _count_steps(trainer: Trainer, schedule: type) -> int:
    """Return the number of optimizer steps of the complete run. Raise a UsageError if the run has no limit."""
    if (steps := trainer.estimated_stepping_batches) == float("inf"):
        raise UsageError(f"--lr_scheduler {schedule.__name__} needs the run's length: --max_epochs 5")
    return int(steps)
