"""Processes of a run: stop on signals, end the run when a rank dies or hangs, bind to the loopback interface."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Trainer

from datamodules.machine import SIGNALS
from lit_training.runs.lightning_internals import stop_process_observer

POLL = 0.5
"""Seconds between two checks of the clock and of the other processes."""
GRACE = 2.0
"""Seconds that this process gets to report why another process ended."""
ALREADY_REPORTED = 2
"""Exit code of a process that has printed why it ended."""
LAUNCHER = "FIT_LAUNCHER_PID"
"""Environment variable that holds the process ID of the process that launched the others."""


class Stopped(SystemExit):
    """Training was stopped between two steps by a signal."""


class Watch:
    """Receive signals, and end the process if the main thread cannot.

    Before the first step and after the last one a signal ends the program at once, because there is nothing to save.
    During training the callback ResumePoint reacts to the first signal; a second one ends the program at once. All this
    runs in a thread: the main thread may hang in a collective operation, where Python runs no signal handler.

    Args:
        timeout: minutes without a step, counted from the first step on, after which the run ends with an error.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.signum = 0
        """The signal that stops the run, or 0."""
        self.stepping = False
        """True between the first and the last training step."""
        self.ending = False
        """True if the main thread is already ending because of an error."""
        self.trainer: Trainer | None = None
        self._progress: float | None = None
        self._feed: socket.socket | None = None
        self._parent = int(os.environ.get(LAUNCHER, os.getppid()))

    def start(self) -> None:
        """Handle signals from now on. Call it from the main thread."""
        wake, self._feed = socket.socketpair()  # on Windows select() and set_wakeup_fd() need sockets
        self._feed.setblocking(False)
        os.environ.setdefault(LAUNCHER, str(os.getpid()))
        self.set_signal_handlers()
        signal.set_wakeup_fd(self._feed.fileno(), warn_on_full_buffer=False)
        stop_process_observer()
        threading.Thread(target=self._look, args=(wake,), name="watch", daemon=True).start()

    def set_signal_handlers(self) -> None:
        """Set the signal handlers; called again after the Trainer has set its own, which hang under DDP."""
        if self._feed is not None:
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)  # the wake-up socket passes the number to the thread

    def note_progress(self) -> None:
        """Restart the timeout, after a step or a batch."""
        self._progress = time.monotonic()

    def _look(self, wake: socket.socket) -> None:
        dead_since: float | None = None
        while True:
            if select.select([wake], [], [], POLL)[0]:
                for signum in wake.recv(64):
                    if signum in SIGNALS:
                        self._handle_signal(signum)
            if is_child(self.trainer) and os.getppid() != self._parent:
                self._end(1, "")  # rank 0 has exited and reported why
            if self._progress is not None and time.monotonic() - self._progress > 60 * self.timeout:
                message = f"no step for {self.timeout:g} minutes (--timeout): a training process hangs"
                self._end(1, f"{message}; the last resume point is complete")
            if not self.ending and (code := self._failed_child()):
                dead_since = dead_since or time.monotonic()
                if code == ALREADY_REPORTED:
                    self._end(ALREADY_REPORTED, "")
                if time.monotonic() - dead_since > GRACE:
                    how = f"signal {-code}" if code < 0 else f"code {code}"
                    kept = "" if self._progress is None else "; the last resume point is complete"
                    self._end(1, f"a training process ended with {how}{kept}")

    def _handle_signal(self, signum: int) -> None:
        first, self.signum = not self.signum, self.signum or signum
        if not (first and self.stepping):  # read last, so that either the end of training or this sees the signal
            self._end(128 + signum, "")

    def _failed_child(self) -> int:
        """Return the exit code of a launched process that failed, or 0. One that reported why comes first."""
        codes = [code for process in _children(self.trainer) if (code := process.poll())]
        return ALREADY_REPORTED if ALREADY_REPORTED in codes else (codes or [0])[0]

    def is_reported(self) -> bool:
        """Return True if a launched process has printed why it ended. It may have exited but not been reaped yet."""
        end = time.monotonic() + GRACE
        while not (code := self._failed_child()) and _children(self.trainer) and time.monotonic() < end:
            time.sleep(0.05)
        return code == ALREADY_REPORTED

    def _end(self, code: int, message: str) -> None:
        """Exit without the main thread, and end all other processes of the run."""
        if message and (self.trainer is None or self.trainer.is_global_zero):
            print(f"fit.py: error: {message}", file=sys.stderr, flush=True)
        for process in _children(self.trainer):
            process.kill()  # a process that hangs ignores SIGTERM
        if is_child(self.trainer) and os.getppid() == self._parent and code == 1:
            # The parent is suspended, or it would have ended this process. On Windows SIGTERM acts like SIGKILL.
            os.kill(self._parent, getattr(signal, "SIGKILL", signal.SIGTERM))
        os._exit(code)


def is_child(trainer: Trainer | None) -> bool:
    """Return True if another process of this run launched this one. That process sets the exit code of the run."""
    if trainer is None:
        return False
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _children(trainer: Trainer | None) -> list[subprocess.Popen]:
    launcher = trainer.strategy.launcher if trainer is not None else None
    return [process for process in getattr(launcher, "procs", []) if isinstance(process, subprocess.Popen)]


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """Return the values of all ranks. All ranks must call it."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def disconnect() -> None:
    """Close the connection between the processes. With gloo, torch may otherwise abort when the interpreter exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def bind_to_loopback(trainer: Trainer) -> None:
    """Let the processes of a single machine talk over its loopback interface, unless the user chose an interface.

    The port of torch's rendezvous stays open on all interfaces: torch has no setting for it.
    """
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if trainer.num_nodes == 1 and loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def requeue_slurm_job(signum: int) -> None:
    """Requeue the SLURM job when its time is nearly over (``#SBATCH --signal=USR1@120``).

    The job's command then resumes with ``--resume auto``.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if signum != getattr(signal, "SIGUSR1", None) or not SLURMEnvironment.detect() or not re.fullmatch(r"\d+", job):
        return
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"fit.py: warning: job {job} could not be requeued: {error}", file=sys.stderr)
