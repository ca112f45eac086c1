"""``--lr_scheduler``: torch's learning rate schedules, with the length of the run."""

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from lit_models import LitBase
from lit_training.errors import UsageError

SCHEDULES = (StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau)
FROM_THE_RUN = {"optimizer", "T_max", "max_lr", "total_steps", "epochs", "steps_per_epoch"}
"""Arguments that are not flags: they follow from the run's length and the optimizer's learning rate."""


def make_schedule_factory(
    schedule: type, arguments: dict[str, Any], model: LitBase, monitor: str
) -> Callable[[Optimizer], dict[str, Any]]:
    """Return a function for ``chosen_schedule`` of a model: optimizer -> Lightning's ``lr_scheduler`` dictionary.

    Args:
        schedule: one of :data:`SCHEDULES`.
        arguments: its arguments except :data:`FROM_THE_RUN`.
        model: its trainer gives the length of the run.
        monitor: the loss that ReduceLROnPlateau monitors.

    Raises:
        UsageError: the schedule needs the run's length, but the run has none.
    """

    def build(optimizer: Optimizer) -> dict[str, Any]:
        trainer = model.trainer
        if schedule is OneCycleLR:
            rates = [group["lr"] for group in optimizer.param_groups]
            cycle = OneCycleLR(optimizer, rates, total_steps=_steps(trainer, schedule), **arguments)
            return {"scheduler": cycle, "interval": "step"}
        if schedule is CosineAnnealingLR:
            epochs = trainer.max_epochs or -1
            if epochs < 0:
                trainer.fit_loop.setup_data()  # Lightning does this too before it counts steps
                epoch_steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
                epochs = math.ceil(_steps(trainer, schedule) / epoch_steps)
            return {"scheduler": CosineAnnealingLR(optimizer, epochs, **arguments)}
        # ReduceLROnPlateau must not count epochs without validation.
        frequency = trainer.check_val_every_n_epoch or 1 if monitor == "val_loss" else 1
        return {"scheduler": schedule(optimizer, **arguments), "monitor": monitor, "frequency": frequency}

    return build


def _steps(trainer: Trainer, schedule: type) -> int:
    """Return the number of optimizer steps of the whole run."""
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise UsageError(f"--lr_scheduler {schedule.__name__} needs the run's length: --max_epochs 5")
    return int(steps)
