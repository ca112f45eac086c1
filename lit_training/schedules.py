"""``--lr_scheduler``: torch's schedules, whose length is the run's and never a literal."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from lit_models import LitBase

SCHEDULES = (StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau)
FROM_THE_RUN = {"optimizer", "T_max", "max_lr", "total_steps", "epochs", "steps_per_epoch"}
"""Arguments of theirs that are not flags: the run's length and the optimizer's learning rate give them."""


def schedule_factory(
    schedule: type, arguments: dict[str, Any] | None, model: LitBase
) -> Callable[[Optimizer], dict[str, Any]]:
    """What a model's ``chosen_schedule`` is: optimizer -> Lightning's ``lr_scheduler`` dictionary."""

    def build(optimizer: Optimizer) -> dict[str, Any]:
        options = dict(arguments or {})
        if schedule is OneCycleLR:
            steps = int(model.trainer.estimated_stepping_batches)
            rates = [group["lr"] for group in optimizer.param_groups]
            return {
                "scheduler": OneCycleLR(optimizer, rates, total_steps=steps, **options),
                "interval": "step",
            }
        if schedule is CosineAnnealingLR:
            epochs = model.trainer.max_epochs or 1
            return {"scheduler": CosineAnnealingLR(optimizer, epochs, **options)}
        return {"scheduler": schedule(optimizer, **options), "monitor": "val_loss"}

    return build
