"""Give the model the optimizer and the schedule of ``--optimizer`` and ``--lr_scheduler``, if they have an effect."""

import contextlib
import inspect
from functools import partial
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, get_args

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch.cli import LightningArgumentParser
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler

from lit_models import LitBase
from lit_training.cli.schedules import build_schedule
from lit_training.errors import UsageError
from lit_training.runs.run import Run

ATTRIBUTES = {"optimizer": "chosen_optimizer", "lr_scheduler": "chosen_schedule"}
"""Flag -> attribute of a LitBase."""
LENGTHS = {"estimated_stepping_batches": 1000, "num_training_batches": 100, "max_epochs": 10, "max_steps": -1}
LENGTHS |= {"check_val_every_n_epoch": 1}
"""Attributes of a Trainer that a schedule may ask for. The run's own Trainer does not exist yet."""


def choose_optimizer(run: Run, parser: LightningArgumentParser, typed: set[str]) -> None:
    """Set the optimizer and the schedule of the model. Raise a UsageError if one of the ``typed`` flags is wrong.

    1. Without flags: the model can build its optimizer.
    2. With each flag: the model can still build it, and uses what the flag has chosen.
    3. The arguments of the model that have changed its optimizer before still do.
    """
    model, flags = run.model, [flag for flag in ATTRIBUTES if run.config[flag]]
    rule = f"is for models built on LitBase that return build_optimizers(): {type(model).__name__} has its own in"
    rule += " configure_optimizers, leave"
    if not isinstance(model, LitBase):
        for flag in flags:
            raise UsageError(f"--{flag} {rule} --{flag} out")
        return
    model.trainer = SimpleNamespace(**LENGTHS)  # type: ignore[assignment]
    if type(model).configure_optimizers.__module__.startswith("lit_models."):  # a user's own may fail without a Trainer
        _try_to_build(model, "model", type(model))
    others = _other_models(run, parser, typed) if flags else {}
    for flag in flags:
        kind = resolve_name(run.config[flag]["class_path"])
        arguments = dict(run.config[flag].get("init_args") or {})
        if flag == "lr_scheduler":
            _check_schedule(arguments, run.config["monitor"] or "", typed)
            choice = partial(build_schedule, schedule=kind, arguments=arguments, run=run)
        else:
            choice = partial(kind, **arguments)
        setattr(model, ATTRIBUTES[flag], lambda _: SimpleNamespace(param_groups=[]))
        with_other_choice = _describe(model)
        for one in (model, *others.values()):
            setattr(one, ATTRIBUTES[flag], choice)
        _try_to_build(model, flag, kind)
        if _describe(model) == with_other_choice:
            raise UsageError(f"--{flag} {rule} --{flag} out")
        for name, other in others.items():
            if _describe(other) == _describe(model):
                value, is_known = run.config["model"]["init_args"][name], name in inspect.signature(kind).parameters
                fix = f"use --{flag}.{name} {value}" if is_known else f"leave --model.{name} out"
                raise UsageError(f"--model.{name} {value} has no effect beside --{flag} {kind.__name__}: {fix}")
    model.trainer = None


def _check_schedule(arguments: dict[str, Any], monitor: str, typed: set[str]) -> None:
    if arguments.get("step_size", 1) < 1:
        raise UsageError("--lr_scheduler.step_size must be at least 1 epoch: --lr_scheduler.step_size 7")
    if "--lr_scheduler.mode" in typed and monitor and not monitor.endswith(mode := arguments["mode"]):
        raise UsageError(f"--lr_scheduler.mode {mode} contradicts --monitor {monitor}: leave one out")


def _try_to_build(model: LitBase, flag: str, kind: type) -> None:
    try:
        model.configure_optimizers()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UsageError(f"--{flag} {kind.__name__}: {error}; change this value") from error


def _describe(model: LitBase) -> str:
    """Describe the network of a model, and the optimizers and schedules that it builds, or the error."""
    weights = [is_lazy(weight) or weight.shape for weight in model.parameters()]
    try:
        built = apply_to_collection(model.configure_optimizers(), LRScheduler, lambda schedule: schedule.state_dict())
    except Exception as error:
        built = error
    return f"{model} {weights} {built!r}"


def _other_models(run: Run, parser: LightningArgumentParser, typed: set[str]) -> dict[str, LitBase]:
    """Return each ``typed`` argument -> the model with another value, if its network or optimizer is then another."""
    if run.resume not in ("never", "auto"):  # the arguments are those of the resumed run
        return {}
    others = {}
    for name, value in run.config["model"]["init_args"].items():
        if f"--model.{name}" not in typed:
            continue
        parameter = inspect.signature(type(run.model)).parameters.get(name)
        values = [2 * value or 1, not value] if isinstance(value, int | float) else []
        values += [parameter.default, *get_args(parameter.annotation)] if parameter else []
        for other_value in values:
            config = run.config["model"].clone()
            config["init_args"][name] = other_value
            with contextlib.suppress(Exception), torch.device("meta"):  # fast, and draws no random numbers
                other = parser.instantiate(Namespace(model=config))["model"]
                other.trainer = run.model.trainer
                other.configure_optimizers()
                if _describe(other) != _describe(run.model):
                    others[name] = other
                    break
    return others
