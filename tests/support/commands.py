"""Run the project's scripts in a new process, or in this process, which is faster: the imports are done."""

import contextlib
import io
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
"""Environment of a new process: one thread, because the networks are small, and no GPU, as in tests/conftest.py."""
WATCH = "lit_training.runs.processes.Watch.start"
"""This function sets signal handlers. It is replaced by a mock, so that the test process keeps its handlers."""


class Ended(NamedTuple):
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def run(line: str) -> Ended:
    """Run a command like ``fit.py --max_epochs 1`` in this process and the current folder."""
    name, *arguments = shlex.split(line)
    script = str(ROOT / "scripts" / name)
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with (
        mock.patch.object(sys, "argv", [script, *arguments]),
        mock.patch(WATCH),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
        finally:
            if signal.getsignal(signal.SIGTERM) is not on_sigterm:  # a later fork would inherit it
                signal.signal(signal.SIGTERM, on_sigterm)
    return Ended(code, out.getvalue(), err.getvalue())


def run_well(line: str) -> str:
    """Run a command that must end with exit code 0; return its stdout."""
    ended = run(line)
    assert ended.code == 0, ended.err
    return ended.out


@contextlib.contextmanager
def series_in_this_process() -> Iterator[list[str]]:
    """Let ``fit.py --seeds`` train in this process, not in new processes. Yield the list of the seeds it has begun."""
    real, seeds = subprocess.Popen, list[str]()

    class Here:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            line = shlex.join(["fit.py", *command[2:]])
            seeds.append(line.partition("--seed ")[2])
            with mock.patch.dict(os.environ, env):
                ended = run(line)
            self.returncode, self.out = ended.code, ended.out

        def communicate(self) -> tuple[str, None]:
            return self.out, None

    def popen(command: Any, **options: Any) -> Any:
        return Here(command, options["env"]) if command[0] == sys.executable else real(command, **options)

    with mock.patch("subprocess.Popen", popen):
        yield seeds


def start(line: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a script in a new process, so that a test can kill it, send signals, or use several ranks."""
    name, *arguments = shlex.split(line)
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, **{"stdout": pipe, "stderr": pipe, "text": True, "env": ENVIRONMENT, **options})
