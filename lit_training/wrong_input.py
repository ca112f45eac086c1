"""Says in one line what jsonargparse and Lightning say in many: culprit, reason, nearest name."""

import ast
import difflib
import inspect
import os
import re
import tempfile
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import StrategyRegistry
from torch.optim import Optimizer

from datamodules.examination import available_cores
from datamodules.listing import counted
from lit_training.messages import UsageError, suggest
from lit_training.schedules import SCHEDULES
from lit_training.spelling import DATA, MODELS, TRAINER_FLAGS

KINDS = {"bool": ("true or false", "true"), "int": ("a whole number", "3"), "float": ("a number", "0.1")}
KINDS |= {"PositiveInt": ("a whole number above 0", "3"), "PositiveFloat": ("a number above 0", "0.5")}
"""Python type -> how it is called, an example."""

# What the Trainer takes as any text or number and refuses late, in many lines, or not at all.
CHOICES = {
    "accelerator": ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
    "strategy": ["auto", *StrategyRegistry.available_strategies()],
    "profiler": ["simple", "advanced", "pytorch", "xla"],
    "gradient_clip_algorithm": ["norm", "value"],
}
LOWEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 1,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
}
ELSEWHERE = {"epochs": "max_epochs", "learning_rate": "model.lr", "gpus": "devices", "seed": "seed"}
"""What other programs, or people, call it -> what it is called here."""
SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
PROCESSES_PER_CORE = 8


def parse_error(message: str, parser: LightningArgumentParser) -> str:
    """One line out of jsonargparse's many."""
    if found := re.search(r"[Uu]nrecognized arguments?: (\S+)", message):
        flag = found[1].split("=")[0]
        if not flag.startswith("-"):
            return f"{flag} follows no flag: leave it out, or see --help"
        known = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
        return f"there is no flag {flag}: {_suggest_flag(flag.strip('-').removeprefix('trainer.'), known)}"
    if found := re.search(r"(--\w+)\.help: .*: (\S+)$", message):
        return f"there is no {found[1]} {found[2]}: {suggest(found[2], _classes(found[1][2:], message))}"
    if found := re.search(r"argument (\S+): expected one argument", message):
        return f"{_short(found[1].split('/')[0])} needs a value: {_short(found[1].split('/')[0])} VALUE"

    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)":', message)))
    flag = _short("--" + ".".join(keys))
    owner = re.findall(r"given class_path '([^']+)':", message)
    if found := re.search(r"(?:Option|does not accept option) '([^']+)'", message):
        return _option_error(found[1], flag, owner[-1] if owner else None, parser)
    if found := re.search(r"arguments are required: (.+)", message):
        needed = " and ".join(f"{flag}.{name.strip()}" for name in found[1].split(","))
        return f"{flag} {_name(owner)} also needs {needed}: {flag}.{found[1].split(',')[0]} VALUE"

    if "Unable to load config" in message:
        return f"{flag} stands before a dot and a name: {flag}.max_epochs 3, or --max_epochs 3"
    found_values = re.findall(r"(?:Given value|Got value|import path string|to float|base 10): (.*)", message)
    found_values += re.findall(r": (\S+) does not conform", message)
    values = [value.strip("'") for value in found_values if not value.startswith(("NestedArg(", "Namespace("))]
    value = values[0] if values else ""
    if keys and not value:
        return f"{flag} needs a value: {flag} VALUE"
    expected = message.split("Given value")[0]
    kinds = [kind for kind in KINDS if re.search(rf"<class '{kind}'>|Not of type {kind}:", expected)]
    if keys == ["seed_everything"] or "float" in kinds:
        kinds = kinds[-1:]
    choices = [str(name) for text in re.findall(r"Literal(\[[^]]*\])", message) for name in ast.literal_eval(text)]
    if choices:
        return f"{flag} {value}: {suggest(value, [*dict.fromkeys(choices), *['true', 'false'] * ('bool' in kinds)])}"
    if kinds:
        return f"{flag} {value} is not {' or '.join(KINDS[kind][0] for kind in kinds)}: {flag} {KINDS[kinds[-1]][1]}"
    if len(keys) > 1:
        return f"{flag} {value} is not what {_name(owner)} takes: --{keys[0]}.help {_name(owner)} shows what it does"
    if keys:
        reason = re.search(r"No module named .*|does not correspond to a subclass of \w+", message)
        said = f"{flag} {value} cannot be used ({reason[0]})" if reason else f"there is no {flag} {value}"
        return f"{said}: {suggest(value, _classes(keys[-1], message))}"
    return message


def _option_error(name: str, flag: str, owner: str | None, parser: LightningArgumentParser) -> str:
    """A setting that a class, or the command line, does not have."""
    if owner in ("torch.optim.Optimizer", "torch.optim.optimizer.Optimizer"):
        return f"{flag}.{name} belongs to an optimizer that is not named: --optimizer Adam {flag}.{name} VALUE"
    if owner is None:
        known = {action.dest.removeprefix("trainer.").split(".")[0] for action in parser._actions}
        return f"there is no setting {name}: {_suggest_flag(name, known)}"
    arguments = {n for n in inspect.signature(resolve_name(owner)).parameters if n not in ("self", "params")}
    hint = suggest(name, sorted(arguments)).replace("did you mean ", f"did you mean {flag}.")
    return f"{flag}.{name}: {_name([owner])} has no argument {name}; {hint}"


def _suggest_flag(name: str, known: set[str]) -> str:
    spelled: dict[str, str] = {}
    for key, classes in (("model", MODELS), ("data", DATA)):  # --lr is --model.lr
        for klass in classes.values():
            spelled |= {argument: f"{key}.{argument}" for argument in inspect.signature(klass).parameters}
    spelled |= {flag: flag for flag in sorted(known)} | ELSEWHERE
    near = difflib.get_close_matches(name, spelled, n=1, cutoff=0.7)
    return f"did you mean --{spelled[near[0]]}?" if near else "see --help, or --help_all for every flag"


def _classes(key: str, message: str) -> list[str]:
    """Names of the classes that ``key`` takes."""
    if key in ("model", "data"):
        return list(MODELS if key == "model" else DATA)
    if key == "lr_scheduler":
        return [schedule.__name__ for schedule in SCHEDULES]
    base = re.search(r"(lightning\.[\w.]+)", message)
    known = set((resolve_name(base[1]) if base else Optimizer).__subclasses__())
    while deeper := {sub for klass in known for sub in klass.__subclasses__()} - known:
        known |= deeper
    return sorted({klass.__name__ for klass in known if not klass.__name__.startswith("_")})


def _name(path: list[str]) -> str:
    return path[-1].rsplit(".", 1)[-1] if path else ""


def _short(flag: str) -> str:
    return flag.replace("--trainer.", "--").replace(".init_args", "").replace("seed_everything", "seed")


def check_trainer(config: dict[str, Any]) -> None:
    """Refuse what the Trainer would refuse late, in many lines, or not at all.

    Raises:
        UsageError: names the flag and what it may be.
    """
    for name, known in CHOICES.items():
        value = config[name]
        if isinstance(value, str) and value.lower() not in known:
            raise UsageError(f"--{name} {value}: {suggest(value, known)}")
    for name, lowest in LOWEST.items():
        if isinstance(config[name], int | float) and not config[name] >= lowest:
            raise UsageError(f"--{name} starts at {lowest}, not at {config[name]}: --{name} {max(lowest, 1)}")
    for name in SHARES:
        value = config[name]
        if value is not None and not (value >= 0 and (isinstance(value, int) or value <= 1)):
            raise UsageError(
                f"--{name} {value} is neither a share from 0.0 to 1.0 nor a number of batches: --{name} 10"
            )
    if config["limit_train_batches"] == 0:
        raise UsageError("--limit_train_batches 0 leaves nothing to train on: --limit_train_batches 1")
    interval = config["val_check_interval"]
    if isinstance(interval, int | float) and not (interval > 0 and (isinstance(interval, int) or interval <= 1)):
        raise UsageError(
            f"--val_check_interval {interval} is neither a share of an epoch, up to 1.0, nor a number of steps: "
            "--val_check_interval 0.5"
        )
    duration = config["max_time"]
    if isinstance(duration, str) and not re.fullmatch(r"\d+:\d\d?:\d\d?:\d\d?", duration):
        raise UsageError(f"--max_time {duration} is not DAYS:HOURS:MINUTES:SECONDS: --max_time 00:01:30:00")
    if config["barebones"]:
        wanted = [name for name in ("logger", "enable_checkpointing", "enable_progress_bar") if config[name]]
        wanted += [name for name in ("fast_dev_run", "profiler", "detect_anomaly") if config[name]]
        if wanted:
            raise UsageError(f"--barebones leaves out what --{wanted[0]} asks for: drop one of the two")
    check_devices(config["accelerator"], config["devices"])
    _check_writable(Path(config["default_root_dir"] or "."))


def check_devices(accelerator: Any, devices: Any) -> None:
    """Refuse a number of processes that is none, or more than a CPU can be asked for.

    Raises:
        UsageError: names the flag and what it may be.
    """
    text, on_gpu = str(devices), torch.cuda.is_available() or torch.backends.mps.is_available()
    if text == "auto" or accelerator not in ("auto", "cpu") or (accelerator == "auto" and on_gpu):
        return
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--devices {text} is not a number of processes: --devices 2, or auto")
    if int(text) > PROCESSES_PER_CORE * available_cores():
        cores = available_cores()
        raise UsageError(f"--devices {text}: this machine has {counted(cores, 'core')}; --devices {cores}, or auto")


def _check_writable(root: Path) -> None:
    """Try whether the run's directory could be made, without making it."""
    folder = root.expanduser().absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--default_root_dir {root} cannot be written ({error.strerror or error}): choose another folder"
        ) from error


def trainer_error(error: Exception, config: dict[str, Any]) -> str:
    """One line out of what building the Trainer raised."""
    accelerator, text = config["accelerator"], str(error)
    if accelerator in ("gpu", "cuda", "mps", "tpu") and re.search(
        r"No supported gpu backend found|can not run on your system|torch_xla|CUDA|not available", text
    ):
        what = "GPU" if accelerator in ("gpu", "cuda", "mps") else accelerator.upper()
        return f"--accelerator {accelerator}: no {what} is seen here; use --accelerator cpu, or auto"
    named = re.search(rf"\b({'|'.join(TRAINER_FLAGS)})\b", text)
    return f"--{named[1]} {config[named[1]]}: {text}" if named else text
