"""Find the device for ``--accelerator``, and switch a model to evaluation mode inside a ``with`` block."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lit_training.errors import UsageError


def find_device(accelerator: str) -> torch.device:
    """Return the device for ``cpu``, ``gpu``, ``mps`` or ``auto`` (the first available of gpu, mps and cpu).

    Raise a UsageError if this machine does not have such a device.
    """
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, is_available in available.items() if is_available)
    if not available[accelerator]:
        raise UsageError(missing_device_message(accelerator))
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def missing_device_message(accelerator: str) -> str:
    kind = "GPU" if accelerator in ("gpu", "cuda", "mps") else accelerator.upper()
    return f"--accelerator {accelerator}: no {kind} was found; use --accelerator cpu, or auto"


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode inside the ``with`` block, then restore the mode of each submodule."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
