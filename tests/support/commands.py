"""Run the project's scripts as a user does: in this process, which has paid for the imports, or in one of their own."""

import contextlib
import io
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
"""Of a process of its own: one thread, for the networks are small."""
WATCH = "lit_training.signals.Watch.start"
"""Takes over the signals: the test run keeps its own handlers."""


class Ended(NamedTuple):
    """How a command ended: exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def run(line: str) -> Ended:
    """Run ``fit.py --max_epochs 1`` and the like in this process and in the current folder."""
    name, *arguments = shlex.split(line)
    script = str(ROOT / "scripts" / name)
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", [script, *arguments]),
        mock.patch(WATCH, return_value=None),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
    return Ended(code, out.getvalue(), err.getvalue())


def run_well(line: str) -> str:
    """Stdout of a command that has to end with exit code 0."""
    ended = run(line)
    assert ended.code == 0, ended.err
    return ended.out


def start(line: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a script as a process of its own: to kill it, or to give it signals or several ranks."""
    name, *arguments = shlex.split(line)
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, **options)
