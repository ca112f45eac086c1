"""CPU cores, signals and the cache folder of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from datamodules.errors import DataError


def available_cores() -> int:
    """Return the number of CPU cores that this process may use, given its affinity and the container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # without cgroup v2, or with the quota "max", there is no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""Signals that stop a run. Windows has no SIGUSR1."""


def cache_folder() -> Path:
    """Return the path of ``lit-classics`` in the user's cache folder. Its files can be deleted at any time.

    Raises:
        DataError: the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-classics"
    except RuntimeError as error:
        raise DataError(
            "there is no home folder, in which decoded pictures are cached: set the environment variable "
            "XDG_CACHE_HOME to a folder"
        ) from error
