"""Run scripts in forks of a server that has imported torch and Lightning: each start saves 7 s of CPU time."""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import ClassVar, NoReturn
from unittest import mock

from tests.stress.kill_runs import devices_of, fork_ranks
from tests.support.commands import ENVIRONMENT, ROOT
from tests.support.drawing import draw_figures, draws_figures

WARM = multiprocessing.get_context("forkserver")
"""Its processes begin with the imports of tests/support/preload.py. Workers of a DataLoader can use it too."""


def start_server() -> None:
    """Start the server of this test process, if it does not run yet."""
    WARM.set_forkserver_preload(["tests.support.preload"])
    with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):  # tests before may have left MASTER_PORT
        forkserver.ensure_running()


class Fork:
    """A script in a process of its own session, with its ranks; what subprocess.Popen offers and the tests use.

    The first word of ``line`` is a file in scripts/, or an absolute path.
    """

    started: ClassVar[list["Fork"]] = []

    def __init__(self, line: str, **environment: str) -> None:
        start_server()
        self.arguments = shlex.split(line)
        self.place = tempfile.TemporaryDirectory()
        how = self.arguments, str(Path.cwd()), {**ENVIRONMENT, **environment}, self.place.name, draws_figures()
        self.process = WARM.Process(target=_run, args=how)
        self.process.start()
        self.pid = int(self.process.pid or 0)
        self.started.append(self)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def read_until(self, text: str) -> None:
        """Wait until stdout or stderr contains ``text``."""
        while text not in "".join(self._outputs()):
            assert self.returncode is None, self._outputs()
            time.sleep(0.02)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end. Return stdout and stderr."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return self._outputs()

    @classmethod
    def end_all(cls) -> None:
        """Kill what a failed test left running. At its exit, Python would wait for it without end."""
        while cls.started:
            fork = cls.started.pop()
            if fork.returncode is None:
                fork.process.kill()
                fork.process.join()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(fork.pid, signal.SIGKILL)  # its ranks

    def _outputs(self) -> tuple[str, str]:
        files = (Path(self.place.name, number) for number in "12")
        out, err = (file.read_text() if file.exists() else "" for file in files)
        return out, err


def _run(arguments: list[str], folder: str, environment: dict[str, str], outputs: str, draws: bool) -> None:
    """Run the script as a new process would, except for the imports and the drawing of figures."""
    draw_figures(draws)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(f"{outputs}/{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    script = ROOT / "scripts" / arguments[0]  # or an absolute path
    sys.argv, sys.path[0] = [str(script), *arguments[1:]], str(script.parent)
    fork_ranks(devices_of(arguments))
    end_with(partial(runpy.run_path, str(script), run_name="__main__"))


def end_with(run: Callable[[], object]) -> NoReturn:
    """Call a function, and end this process with the exit code of a program that does only that."""
    code = 1
    try:
        run()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()  # multiprocessing does not
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
