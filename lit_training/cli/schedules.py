"""Build torch's learning rate schedules for ``--lr_scheduler``, with the length of the run."""

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR

from lit_models import LitBase
from lit_training.errors import UsageError
from lit_training.runs.best_epoch import MODES

SCHEDULES = (StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau)
ARGUMENTS_FROM_RUN = dict.fromkeys(("T_max", "total_steps", "epochs", "steps_per_epoch"), "--max_epochs")
ARGUMENTS_FROM_RUN |= {"optimizer": "--optimizer", "max_lr": "--optimizer.lr, or --model.lr without --optimizer"}
"""Arguments of schedules that users cannot set -> the flag by which the run sets them."""


def make_schedule_factory(
    schedule: type, arguments: dict[str, Any], model: LitBase, monitor: str
) -> Callable[[Optimizer], dict[str, Any]]:
    """Return a function for ``model.chosen_schedule``. It takes an optimizer and returns Lightning's scheduler dict."""

    def build(optimizer: Optimizer) -> dict[str, Any]:
        trainer = model.trainer
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
        # ReduceLROnPlateau must step only after a validation, because only then val_loss has a new value.
        waits_for_validation = schedule is ReduceLROnPlateau and not monitor.startswith("train")
        frequency = trainer.check_val_every_n_epoch or 1 if waits_for_validation else 1
        options = {"monitor": monitor, "frequency": frequency, "strict": monitor in MODES}
        return {"scheduler": schedule(optimizer, **arguments), **options}

    return build


def uses(model: LitBase, name: str) -> bool:
    """Return True if the optimizers and schedules that the model builds depend on its constructor argument ``name``."""
    places = [place for place in (model.hparams, vars(model)) if name in place]
    values, before = [place[name] for place in places], _describe_optimizers(model)
    for place, value in zip(places, values, strict=True):
        place[name] = (
            not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else object()
        )
    try:
        return _describe_optimizers(model) != before
    finally:
        for place, value in zip(places, values, strict=True):
            place[name] = value


def _describe_optimizers(model: LitBase) -> str:
    """Return the settings of the optimizers and schedules that the model builds, or the error."""

    def describe(built: Any) -> str:
        if isinstance(built, dict | list | tuple):
            return str([describe(part) for part in (built.values() if isinstance(built, dict) else built)])
        return repr(built.state_dict() if isinstance(built, LRScheduler) else built)

    try:
        return describe(model.configure_optimizers())
    except Exception as error:
        return repr(error)


def _count_steps(trainer: Trainer, schedule: type) -> int:
    """Return the number of optimizer steps of the complete run. Raise a UsageError if the run has no limit."""
    if (steps := trainer.estimated_stepping_batches) == float("inf"):
        raise UsageError(f"--lr_scheduler {schedule.__name__} needs the run's length: --max_epochs 5")
    return int(steps)
