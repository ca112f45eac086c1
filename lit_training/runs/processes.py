"""Process supervision: stop on signals, end the job when a rank dies, bind to loopback."""

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
"""Seconds between two looks at the clock and at the other processes."""
GRACE = 2.0
"""Seconds that this process has to say itself why another one ended."""
ALREADY_REPORTED = 2
"""Exit code of a process that has said why it ended."""
LAUNCHER = "FIT_LAUNCHER_PID"
"""Environment variable that tells a launched process which one it belongs to."""


class Stopped(SystemExit):
    """Training ended between two steps because a signal asked for it."""


class Watch:
    """Knows whether a signal came, and ends the process where the main thread no longer can.

    Before the first step and after the last one a signal ends the program at once: there is nothing to save. In
    between the first one is noted for the callback ResumePoint; a second one does not wait. A thread does this: the
    main one may be inside a collective operation that never returns, where Python runs no handler.

    Args:
        timeout: minutes without any step, counted from the first one, after which the job ends with an error.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.signum = 0
        """The signal that asks to stop, or 0."""
        self.stepping = False
        """Training is between its first and its last step."""
        self.ending = False
        """The main thread is already ending because of an error."""
        self.trainer: Trainer | None = None
        self._progress: float | None = None
        self._wake: socket.socket | None = None
        self._feed: socket.socket | None = None
        self._parent = int(os.environ.get(LAUNCHER, os.getppid()))

    def start(self) -> None:
        """Take over the signals; call it from the main thread."""
        self._wake, self._feed = socket.socketpair()  # Windows can neither select on a pipe nor wake one up
        self._feed.setblocking(False)
        os.environ.setdefault(LAUNCHER, str(os.getpid()))
        self.take_signals()
        signal.set_wakeup_fd(self._feed.fileno(), warn_on_full_buffer=False)
        stop_process_observer()
        threading.Thread(target=self._look, args=(self._wake,), name="watch", daemon=True).start()

    def take_signals(self) -> None:
        """Again, after the Trainer has put its own handlers in place, which hang under DDP."""
        if self._wake is not None:
            for number in SIGNALS:
                signal.signal(number, self._note)

    def note_progress(self) -> None:
        """A step or a batch has passed."""
        self._progress = time.monotonic()

    def _note(self, signum: int, frame: Any) -> None:
        """Nothing: the number has reached the thread through the wake-up socket."""

    def _look(self, wake: socket.socket) -> None:
        dead_since: float | None = None
        while True:
            if select.select([wake], [], [], POLL)[0]:
                for signum in wake.recv(64):
                    if signum in SIGNALS:
                        self._handle_signal(signum)
            if is_child(self.trainer) and os.getppid() != self._parent:
                self._end(1, "")  # rank 0 is gone, and has said why
            if self._progress is not None and time.monotonic() - self._progress > 60 * self.timeout:
                self._end(
                    1,
                    f"no step for {self.timeout:g} minutes (--timeout): a training process hangs; "
                    "the last resume point is whole",
                )
            if not self.ending and (code := self._failed_child()):
                dead_since = dead_since or time.monotonic()
                if code == ALREADY_REPORTED:
                    self._end(ALREADY_REPORTED, "")
                if time.monotonic() - dead_since > GRACE:
                    how = f"signal {-code}" if code < 0 else f"code {code}"
                    kept = "" if self._progress is None else "; the last resume point is whole"
                    self._end(1, f"a training process ended with {how}{kept}")

    def _handle_signal(self, signum: int) -> None:
        first, self.signum = not self.signum, self.signum or signum
        if not (first and self.stepping):  # looked at last: who ends the training then sees the signal, or this does
            self._end(128 + signum, "")

    def _failed_child(self) -> int:
        """The exit code of a launched process that failed, or 0; of one that said why, if there is one."""
        codes = [code for process in _children(self.trainer) if (code := process.poll())]
        return ALREADY_REPORTED if ALREADY_REPORTED in codes else (codes or [0])[0]

    def is_reported(self) -> bool:
        """Whether a launched process has said why it ended; it is gone already, but may not look so yet."""
        end = time.monotonic() + GRACE
        while not (code := self._failed_child()) and _children(self.trainer) and time.monotonic() < end:
            time.sleep(0.05)
        return code == ALREADY_REPORTED

    def _end(self, code: int, message: str) -> None:
        """Leave without the main thread, and leave no process behind."""
        if message and (self.trainer is None or self.trainer.is_global_zero):
            print(f"fit.py: error: {message}", file=sys.stderr, flush=True)
        end_children(self.trainer)
        if is_child(self.trainer) and os.getppid() == self._parent and code == 1:
            # It is stopped, or it would have ended this process. Windows' SIGTERM does what SIGKILL does elsewhere.
            os.kill(self._parent, getattr(signal, "SIGKILL", signal.SIGTERM))
        os._exit(code)


def is_child(trainer: Trainer | None) -> bool:
    """Whether another process of this program launched this one, which then tells the exit code."""
    if trainer is None:
        return False
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _children(trainer: Trainer | None) -> list[subprocess.Popen]:
    launcher = trainer.strategy.launcher if trainer is not None else None
    return [process for process in getattr(launcher, "procs", []) if isinstance(process, subprocess.Popen)]


def end_children(trainer: Trainer | None) -> None:
    """Kill the training processes that this one launched; a hanging one does not hear a gentler signal."""
    for process in _children(trainer):
        process.kill()


def disconnect() -> None:
    """Close the connection between the processes: with gloo torch may abort while the interpreter ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def bind_to_loopback(trainer: Trainer) -> None:
    """Processes of a single machine talk over its loopback interface, unless the user has named another one.

    What torch offers no setting for is the port at which they meet: it is open on all interfaces.
    """
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if trainer.num_nodes == 1 and loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def requeue_slurm_job(signum: int) -> None:
    """Put a SLURM job back into the queue when its time is nearly up (``#SBATCH --signal=USR1@120``).

    The same command, with ``--resume auto``, then goes on.
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
