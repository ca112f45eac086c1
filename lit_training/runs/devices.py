"""Devices and evaluation mode."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lit_training.errors import UsageError


def find_device(accelerator: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``gpu`` or ``mps``.

    Raises:
        UsageError: there is no such device.
    """
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, found in available.items() if found)
    if not available[accelerator]:
        raise UsageError(missing_device_message(accelerator))
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def missing_device_message(accelerator: str) -> str:
    """Return the error message for a device that is missing."""
    kind = "GPU" if accelerator in ("gpu", "cuda", "mps") else accelerator.upper()
    return f"--accelerator {accelerator}: no {kind} was found; use --accelerator cpu, or auto"


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode while the body runs, then restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
