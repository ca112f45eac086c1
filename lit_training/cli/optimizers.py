"""The flags ``--optimizer`` and ``--lr_scheduler``: build what they name, and refuse flags without effect."""

import contextlib
import copy
import inspect
import math
from functools import partial
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, get_args

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR

from lit_models import LitBase
from lit_training.errors import UsageError
from lit_training.runs.best_epoch import MODES
from lit_training.runs.run import Run

ATTRIBUTES = {"optimizer": "chosen_optimizer", "lr_scheduler": "chosen_schedule"}
"""Flag -> attribute of a LitBase."""
SCHEDULES = (StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau)
ARGUMENTS_FROM_RUN = dict.fromkeys(("T_max", "total_steps", "epochs", "steps_per_epoch"), "--max_epochs")
ARGUMENTS_FROM_RUN |= {"optimizer": "--optimizer", "max_lr": "--optimizer.lr, or --model.lr without --optimizer"}
"""Arguments of schedules that users cannot set -> the flag by which the run sets them."""
LENGTHS = {"estimated_stepping_batches": 1000, "num_training_batches": 100, "max_epochs": 10, "max_steps": -1}
LENGTHS |= {"check_val_every_n_epoch": 1}
"""Attributes of the Trainer that a schedule may ask for."""


def choose_optimizer(run: Run, parser: LightningArgumentParser, typed: set[str]) -> None:
    """Set the model's optimizer and schedule. Raise a UsageError if it cannot build them, or for a flag without effect.

    A flag has no effect if the model builds the same with another value. ``typed``: the flags that the user has set.
    """
    model, config = run.model, run.config
    chosen = [flag for flag in ATTRIBUTES if config[flag]]
    words = " ".join(f"--{flag} {config[flag]['class_path'].rpartition('.')[2]}" for flag in chosen or ["model"])
    unused = "--{0} is for models built on LitBase that return build_optimizers(): "
    unused += f"{type(model).__name__} does not, leave --{{0}} out"
    if not chosen and not type(model).configure_optimizers.__module__.startswith("lit_models."):
        return  # a user's own may need the Trainer, which does not exist yet
    if not isinstance(model, LitBase):
        raise UsageError(unused.format(chosen[0]))
    model.trainer = SimpleNamespace(**LENGTHS)  # type: ignore[assignment]
    others = {}
    if chosen and run.resume in ("never", "auto"):  # else the arguments in files are those of the resumed run
        names = [name for name in vars(config["model"].get("init_args") or Namespace()) if f"--model.{name}" in typed]
        others = {name: other for name in names if (other := _other_model(run, parser, name))}
    for flag in chosen:
        kind, arguments = resolve_name(config[flag]["class_path"]), config[flag].get("init_args") or {}
        build = partial(kind, **arguments)
        if flag == "lr_scheduler":
            build = partial(build_schedule, schedule=kind, arguments=build.keywords, run=run)
        for one in (model, *others.values()):
            setattr(one, ATTRIBUTES[flag], build)
    try:
        model.configure_optimizers()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UsageError(f"{words}: {error}; change this value") from error
    built = _describe(model)
    for flag in chosen:
        other, build = copy.copy(model), getattr(model, ATTRIBUTES[flag])
        other.trainer = model.trainer  # the copy has none
        setattr(other, ATTRIBUTES[flag], lambda groups, build=build: [build(groups)])  # something else
        if _describe(other) == built:
            raise UsageError(unused.format(flag))
    for name in [name for name, other in others.items() if _describe(other) == built]:
        value = config["model"]["init_args"][name]
        fixes = [f"use --{flag}.{name} {value}" for flag in chosen if name in (config[flag].get("init_args") or {})]
        fix = [*fixes, f"leave --model.{name} out"][0]
        raise UsageError(f"--model.{name} {value} has no effect beside {words}: {fix}")
    model.trainer = None


def _other_model(run: Run, parser: LightningArgumentParser, name: str) -> Any:
    """Return the model with another value of an argument if it then differs, or None."""
    config = run.config["model"].clone()
    value, parameter = config["init_args"][name], inspect.signature(type(run.model)).parameters.get(name)
    values = [2 * value or 1, not value] if isinstance(value, int | float) else []
    values += [parameter.default, *get_args(parameter.annotation)] if parameter else []
    for other_value in values:
        config["init_args"][name] = other_value
        with contextlib.suppress(Exception), torch.device("meta"):  # fast, and draws no random numbers
            model = parser.instantiate(Namespace(model=config))["model"]
            model.trainer = run.model.trainer
            model.configure_optimizers()
            if _describe(model) != _describe(run.model):
                return model
    return None


def _describe(model: LitBase) -> str:
    """Describe the network of a model, and the optimizers and schedules that it builds, or the error."""
    weights = [is_lazy(weight) or weight.shape for weight in model.parameters()]
    try:
        built = apply_to_collection(model.configure_optimizers(), LRScheduler, lambda schedule: schedule.state_dict())
    except Exception as error:
        built = error
    return f"{model} {weights} {built!r}"


def build_schedule(optimizer: Optimizer, schedule: Any, arguments: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return Lightning's scheduler dict for the ``optimizer`` of a run."""
    trainer = run.model.trainer
    if arguments.get("step_size", 1) < 1:  # torch divides by it after the first epoch
        raise ValueError("step_size must be at least 1 epoch: --lr_scheduler.step_size 7")
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
