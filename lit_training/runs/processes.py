"""Control the processes of a run. End all of them after a signal, or if one of them fails or hangs."""

import atexit
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
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from datamodules.machine import STOP_SIGNALS
from datamodules.text import plural
from lit_training.errors import UsageError
from lit_training.runs.lightning_internals import stop_process_observer

SECONDS_BETWEEN_CHECKS = 0.5
SECONDS_TO_REPORT = 5.0
"""After another process failed, wait this long for a process that prints a better error message."""
ALREADY_REPORTED = 2
"""Exit code of a process that has printed an error message."""
RANK_VARIABLES = ("NODE_RANK", "GROUP_RANK", "RANK", "LOCAL_RANK", "SLURM_PROCID")
LAUNCHER_VARIABLE = "FIT_LAUNCHER_PID"


class Stopped(SystemExit):
    """Raised when a signal stops the training. The exit code of the run is 128 plus the number of the signal."""


class Watch:
    """Receive signals, and end the process if another process has failed or if training hangs.

    During training the callback ResumePoint reacts to the first signal: it saves last.ckpt and stops the run. A
    second signal, or a signal before the first or after the last step, ends the program at once. All this runs in a
    thread, because Python runs no signal handlers while the main thread hangs in a collective operation. After
    ``timeout`` minutes without a training or validation step, the run ends with an error.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.signum = 0  # the first signal that was received
        self.stepping = False  # True between the first and the last training step
        self.ending = False  # True if the main thread is ending the program because of an exception
        self.trainer: Trainer | None = None
        self._last_progress_time: float | None = None
        self._signal_socket: socket.socket | None = None
        self._launcher_pid = int(os.environ.get(LAUNCHER_VARIABLE, os.getppid()))

    def start(self) -> None:
        """Set the signal handlers and start the thread. Call this method from the main thread."""
        wake_socket, self._signal_socket = socket.socketpair()  # on Windows select() and set_wakeup_fd() need sockets
        self._signal_socket.setblocking(False)
        os.environ.setdefault(LAUNCHER_VARIABLE, str(os.getpid()))
        self.set_signal_handlers()
        signal.set_wakeup_fd(self._signal_socket.fileno(), warn_on_full_buffer=False)
        stop_process_observer()
        threading.Thread(target=self._run_thread, args=(wake_socket,), name="watch", daemon=True).start()

    def set_signal_handlers(self) -> None:
        """Send signals to the thread. Call this again when training starts: the Trainer's handlers hang with DDP."""
        if self._signal_socket is not None:
            for number in STOP_SIGNALS:
                signal.signal(number, lambda *_: None)  # Python writes the number to the socket of the thread

    def note_progress(self) -> None:
        """Restart the timeout. ResumePoint calls this method for each training and validation batch."""
        self._last_progress_time = time.monotonic()

    def _run_thread(self, wake_socket: socket.socket) -> None:
        failed_since: float | None = None
        while True:
            if select.select([wake_socket], [], [], SECONDS_BETWEEN_CHECKS)[0]:
                for signum in wake_socket.recv(64):
                    if signum in STOP_SIGNALS:
                        self._handle_signal(signum)
            is_launched = is_child(self.trainer) or TorchElasticEnvironment.detect()
            if is_launched and os.getppid() != self._launcher_pid:
                self._end(1, "")  # the launching process has ended and printed the reason
            if self._last_progress_time is not None and time.monotonic() - self._last_progress_time > 60 * self.timeout:
                message = f"no step for {self.timeout:g} minutes (--timeout): a training process hangs"
                self._end(1, f"{message}; the last resume point is complete")
            if not self.ending and (code := self._failed_child()):
                failed_since = failed_since or time.monotonic()
                if code == ALREADY_REPORTED:
                    self._end(ALREADY_REPORTED, "")
                if time.monotonic() - failed_since > SECONDS_TO_REPORT:
                    exit_text = f"signal {-code}" if code < 0 else f"code {code}"
                    kept_text = "" if self._last_progress_time is None else "; the last resume point is complete"
                    self._end(1, f"a training process ended with {exit_text}{kept_text}")

    def _handle_signal(self, signum: int) -> None:
        """Store the number of the first signal during training. End the program after any other signal."""
        is_first, self.signum = not self.signum, self.signum or signum
        # No signal is lost: this sets signum, then reads stepping; ResumePoint clears stepping, then reads signum.
        if not (is_first and self.stepping):
            self._end(128 + signum, "")

    def _failed_child(self) -> int:
        """Return the exit code of a child process that failed, or 0. Prefer the code :data:`ALREADY_REPORTED`."""
        codes = [code for process in _children(self.trainer) if (code := process.poll())]
        return ALREADY_REPORTED if ALREADY_REPORTED in codes else (codes or [0])[0]

    def is_reported(self) -> bool:
        """Return True if a child process has printed an error message. Wait up to :data:`SECONDS_TO_REPORT`."""
        end = time.monotonic() + SECONDS_TO_REPORT
        while not (code := self._failed_child()) and _children(self.trainer) and time.monotonic() < end:
            time.sleep(0.05)
        return code == ALREADY_REPORTED

    def _end(self, code: int, message: str) -> None:
        """Print the message on rank 0, kill the child processes, and exit at once, even if the main thread hangs."""
        if message and (self.trainer is None or self.trainer.is_global_zero):
            print(f"fit.py: error: {message}", file=sys.stderr, flush=True)
        for process in _children(self.trainer):
            process.kill()  # a process that hangs ignores SIGTERM
        if is_child(self.trainer) and os.getppid() == self._launcher_pid and code == 1:
            # The launching process has not killed this process, so it is suspended. End it too.
            os.kill(self._launcher_pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no SIGKILL
        os._exit(code)


def is_child(trainer: Trainer | None) -> bool:
    """Return True if another process of the run launched this process."""
    if trainer is None:
        return False
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _children(trainer: Trainer | None) -> list[subprocess.Popen]:
    """Return the processes that this process launched."""
    launcher = trainer.strategy.launcher if trainer is not None else None
    return [process for process in getattr(launcher, "procs", []) if isinstance(process, subprocess.Popen)]


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """Return a list with the value of each rank. All ranks must call this function."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


@atexit.register
def disconnect() -> None:
    """Close the connection between the processes when Python exits, also after an error: gloo's threads may crash then.

    This is after the error was printed. If the connection ended earlier, other processes would print that they lost it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def refuse_other_ranks(trainer: Trainer) -> None:
    """Raise a UsageError if the environment has the rank of another job. This process would not write its files."""
    ranks = [name for name in RANK_VARIABLES if os.environ.get(name, "0") != "0"]
    if ranks and (trainer.world_size == 1 or trainer.global_rank >= trainer.world_size):
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # print the error at once
        found = " ".join(f"{name}={os.environ.pop(name)}" for name in ranks)
        problem = f"the environment has {found}, but this run has {plural(trainer.world_size, 'process', 'processes')}"
        raise UsageError(f"{problem}: start with env -u {' -u '.join(ranks)}, or give --num_nodes and --devices")


def bind_to_loopback(trainer: Trainer) -> None:
    """On a single machine, connect the processes over the loopback interface. Keep an interface that the user set.

    The port where torch's processes first meet stays open on all interfaces: torch has no setting for it.
    """
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if trainer.num_nodes == 1 and loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def requeue_slurm_job(signum: int) -> None:
    """Requeue the SLURM job if the signal is SIGUSR1. SLURM sends SIGUSR1 shortly before the job's time is over.

    The job needs ``#SBATCH --signal=USR1@120`` (120 seconds before the end), and ``--resume auto`` in its command.
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
