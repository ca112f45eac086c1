"""Check arguments of the Trainer. Lightning refuses some wrong values late, with a long message, or not at all."""

import contextlib
import math
import os
import re
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.machine import available_cores
from datamodules.text import plural, print_note
from lit_training.cli.flags import TRAINER_FLAGS
from lit_training.errors import UsageError, explain_gpu_error
from lit_training.runs.devices import missing_device_message
from lit_training.text import suggest

CHOICES = {
    "accelerator": ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
    "strategy": ["auto", *StrategyRegistry.available_strategies()],
    "profiler": ["simple", "advanced", "pytorch", "xla"],
    "gradient_clip_algorithm": ["norm", "value"],
}
MINIMA = {
    -1: ("max_epochs", "max_steps", "num_sanity_val_steps"),
    0: ("gradient_clip_val", "min_epochs", "min_steps", "reload_dataloaders_every_n_epochs"),
    1: ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "num_nodes"),
}
"""Smallest allowed value -> the flags that have this minimum."""
FRACTIONS = ("limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
FRACTIONS_ABOVE_ZERO = ("limit_train_batches", "val_check_interval")
"""These flags take a fraction of the batches (float) or a number of batches (integer)."""
GPUS = {"mps": MPSAccelerator, "cuda": CUDAAccelerator}  # in the order in which Lightning chooses one
MAX_PROCESSES_PER_CORE = 8


def check_trainer(config: dict[str, Any]) -> None:
    """Raise a UsageError for a wrong argument. In ``config``, 2.0 batches become 2, and a name becomes lower case."""
    for name, choices in CHOICES.items():
        if isinstance(value := config[name], str):
            config[name] = value.lower()
            if value.lower() not in choices:
                raise UsageError(f"--{name} {value}: {suggest(value, choices)}")
    name, arguments = str(config["strategy"]), getattr(config["strategy"], "init_args", None) or {}
    if re.match("ddp_(spawn|fork|notebook)", name) or arguments.get("start_method", "popen") != "popen":
        arguments["start_method"] = "popen"  # so that signals reach the processes
        if isinstance(config["strategy"], str):
            config["strategy"] = re.sub("_(spawn|fork|notebook)", "", name)
        print_note("--strategy ddp is used: it trains the same, and its runs can be stopped and resumed")
    for minimum, name in ((minimum, name) for minimum, names in MINIMA.items() for name in names):
        value = config[name]
        if isinstance(value, int | float) and not value >= minimum:
            raise UsageError(f"--{name} must be at least {minimum}, but is {value}: --{name} {max(minimum, 1)}")
    for name in FRACTIONS + FRACTIONS_ABOVE_ZERO:
        if isinstance(config[name], float) and config[name] > 1 and config[name].is_integer():
            config[name] = int(config[name])  # 2.0 means 2 batches; 1.0 stays all batches
        value, maximum = config[name], 1 if isinstance(config[name], float) else math.inf
        is_wrong_zero = value == 0 and name in FRACTIONS_ABOVE_ZERO
        if isinstance(value, int | float) and (is_wrong_zero or not 0 <= value <= maximum):
            interval = "above 0.0 and up to 1.0" if name in FRACTIONS_ABOVE_ZERO else "from 0.0 to 1.0"
            raise UsageError(f"--{name} {value} must be a fraction {interval}, or a number of batches: --{name} 0.5")
    duration = config["max_time"]
    if isinstance(duration, str) and not re.fullmatch(r"\d+:\d\d?:\d\d?:\d\d?", duration):
        raise UsageError(f"--max_time {duration} must be DAYS:HOURS:MINUTES:SECONDS: --max_time 00:01:30:00")
    check_devices(config["accelerator"], config["devices"])
    remote = r"[$~]|\w[\w+.-]" + ("+" if os.name == "nt" else "*") + r":[\\/]"  # $NO/x, ~no/x, s3://, and C:\ on Linux
    if match := re.search(rf"(?:default_root_dir|save_dir|dirpath)='((?:{remote})[^']*)'", str(config)):
        raise UsageError(f"{match[1]} is not a local folder, but runs are written to one: --default_root_dir FOLDER")


def check_devices(accelerator: Any, devices: Any) -> None:
    """Raise a UsageError if this machine does not have these ``devices``, or for too many processes on the CPU."""
    number = str(devices)
    if number == "auto" or accelerator not in ("auto", "cpu", "gpu", *GPUS):
        return  # Lightning checks the others
    gpus = [kind for name, kind in GPUS.items() if accelerator in (name, "auto", "gpu") and kind.is_available()]
    if gpus:
        with contextlib.suppress(MisconfigurationException, TypeError, ValueError):
            if gpus[0].parse_devices(devices):
                return
        has = f"this machine has {plural(count := gpus[0].auto_device_count(), 'GPU')}, numbered from 0"
        raise UsageError(f"--devices {number}: {has}; --devices {count}, or auto")
    if accelerator not in ("auto", "cpu"):
        raise UsageError(missing_device_message(accelerator, "" if number == "1" else " --devices 1"))
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--devices {number} must be an integer of at least 1: --devices 2, or auto")
    if int(number) > MAX_PROCESSES_PER_CORE * (cores := available_cores()):
        limit = f"more than {MAX_PROCESSES_PER_CORE} per core, and this machine has {plural(cores, 'core')}"
        raise UsageError(f"--devices {number}: {limit}; --devices {cores}, or auto")


def explain_trainer_error(error: Exception, config: dict[str, Any]) -> str:
    """Return an error message for an exception from the Trainer's constructor. It names the wrong flag if possible."""
    accelerator, text = config["accelerator"], str(error)
    if message := explain_gpu_error(error):
        return message
    no_device = r"No supported gpu backend found|can not run on your system|torch_xla|CUDA|not available"
    if accelerator in ("gpu", "cuda", "mps", "tpu") and re.search(no_device, text):
        return missing_device_message(accelerator)
    found = re.search(rf"\b({'|'.join(TRAINER_FLAGS)})\b|\wStrategy\b", text)
    flag = (found[1] or "strategy") if found else ""
    value = re.sub(r"<[\w.]*\.(\w+) object at \w*>", r"\1", str(config.get(flag)))
    return f"--{flag} {value}: {text.rstrip('.')}; change or remove --{flag}" if flag else text
