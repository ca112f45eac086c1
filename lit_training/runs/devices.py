"""Find the device for ``--accelerator``, and switch a model to evaluation mode inside a ``with`` block."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lit_training.errors import UsageError


def find_device(accelerator: str) -> torch.device:
    """Return the device for ``cpu``, ``cuda``, ``mps``, ``gpu`` or ``auto``. Raise a UsageError if there is none."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    for name in {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(accelerator, (accelerator,)):
        if available.get(name):
            return torch.device(name)
    raise UsageError(missing_device_message(accelerator))


def missing_device_message(accelerator: str, devices: str = "") -> str:
    """Say that there is no such device. ``devices`` is added to the advice, such as `` --devices 1``."""
    kind = "GPU" if accelerator in ("gpu", "cuda", "mps") else accelerator.upper()
    return f"--accelerator {accelerator}: no {kind} was found; use --accelerator cpu{devices}, or auto"


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
