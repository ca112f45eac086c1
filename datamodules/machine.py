"""Find the CPU cores and their load, the stop signals and the cache folder of this machine."""

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
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup v2 and v1
        with contextlib.suppress(OSError, ValueError):  # no such file, or the quota "max"
            quota, period = map(int, " ".join(Path("/sys/fs/cgroup", name).read_text() for name in names).split())
            cores = min(cores, max(1, quota // period)) if quota > 0 else cores  # without a limit it is -1
    return cores


def other_programs_are_idle() -> bool:
    """Return whether no other thread of this machine computes at this moment. Only Linux can say so."""
    try:
        return Path("/proc/loadavg").read_text().split()[3].startswith("1/")  # running threads, with this one / all
    except OSError:
        return False


STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""Signals that stop a run. Windows has no SIGUSR1."""


def cache_folder() -> Path:
    """Return ``lit-classics`` in the user's cache folder. Its files can be deleted. Raise DataError without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-classics"
    except RuntimeError as error:
        problem = "decoded pictures cannot be cached, because there is no home folder"
        raise DataError(f"{problem}: set the environment variable XDG_CACHE_HOME to a folder") from error
