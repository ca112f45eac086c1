"""Refuse values that the Trainer would refuse late, in many lines, or not at all."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from datamodules.machine import available_cores
from datamodules.text import plural
from lit_training.cli.flags import TRAINER_FLAGS
from lit_training.errors import UsageError
from lit_training.runs.devices import no_such_device
from lit_training.text import suggest

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
SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
PROCESSES_PER_CORE = 8


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
        raise UsageError(f"--devices {text}: this machine has {plural(cores, 'core')}; --devices {cores}, or auto")


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
        return no_such_device(accelerator)
    named = re.search(rf"\b({'|'.join(TRAINER_FLAGS)})\b", text)
    return f"--{named[1]} {config[named[1]]}: {text}" if named else text
