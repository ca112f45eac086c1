"""Which device a trained network computes on."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lit_training.errors import UsageError


def find_device(accelerator: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``gpu`` or ``mps`` into a device.

    Raises:
        UsageError: there is none of that kind.
    """
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, found in there.items() if found)
    if not there[accelerator]:
        raise UsageError(no_such_device(accelerator))
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def no_such_device(accelerator: str) -> str:
    """What to say where there is no device of that kind."""
    kind = "GPU" if accelerator in ("gpu", "cuda", "mps") else accelerator.upper()
    return f"--accelerator {accelerator}: no {kind} is seen here; use --accelerator cpu, or auto"


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while the body runs; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
