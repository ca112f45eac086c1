"""Find the CPU cores, the stop signals and the cache folder of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from datamodules.errors import DataError


def available_cores() -> int:
    """Return the number of CPU cores that the CPU affinity and the container's CPU quota allow this process to use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or the quota "max": no limit
        try:
            quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        except OSError:  # cgroup v1; its quota is -1 without a limit
            files = (Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
            quota, period = (file.read_text().replace("-1", "max") for file in files)
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""Signals that stop a run. Windows has no SIGUSR1."""


def cache_folder() -> Path:
    """Return ``lit-classics`` in the user's cache folder. Its files can be deleted. Raise DataError without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-classics"
    except RuntimeError as error:
        raise DataError(
            "decoded pictures cannot be cached, because there is no home folder: set the environment variable "
            "XDG_CACHE_HOME to a folder"
        ) from error
