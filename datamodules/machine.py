"""What this machine offers: cores, signals, a folder for caches."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from datamodules.errors import DataError


def available_cores() -> int:
    """Cores that this process may use: its affinity, or the container's quota where that is less."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max": no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""What asks a training to stop; Windows has no SIGUSR1."""


def cache_folder() -> Path:
    """``lit-classics`` in the user's cache; whatever lies in it may be deleted at any time.

    Raises:
        DataError: there is no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-classics"
    except RuntimeError as error:
        raise DataError(
            "there is no home folder to keep decoded pictures in: name a place in the environment variable "
            "XDG_CACHE_HOME"
        ) from error
