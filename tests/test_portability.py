"""fit.py on a system like Windows: no fcntl, no SIGUSR1 or SIGKILL, and folders cannot be opened."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ENVIRONMENT, ROOT

SCRIPT = ROOT / "scripts" / "fit.py"
# The fake msvcrt locks one byte of a file for one handle, like the real one.
RUN_AS_ON_WINDOWS = """
import fcntl, multiprocessing, os, runpy, signal, subprocess, sys, types
import tempfile, socket, asyncio  # import them first: they detect the system by these modules
import lightning.pytorch.trainer.connectors.signal_connector as connector
connector._IS_WINDOWS = True  # otherwise it uses missing signals
connector._SignalConnector._valid_signals = staticmethod(lambda: {signal.SIGTERM, signal.SIGINT})

def locking(fd, mode, size, take=fcntl.flock, how=fcntl.LOCK_EX | fcntl.LOCK_NB):
    assert (mode, size) == (2, 1)
    take(fd, how)
    print("locked", flush=True)

msvcrt = types.ModuleType("msvcrt")
msvcrt.locking, msvcrt.LK_NBLCK = locking, 2
sys.modules |= {"fcntl": None, "msvcrt": msvcrt}
for name in ("SIGUSR1", "SIGKILL", "SIGCHLD"):
    delattr(signal, name)
for name in ("O_DIRECTORY", "sched_getaffinity"):
    delattr(os, name)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_training_works_like_on_windows() -> None:
    line = "--data.train_size 16 --data.val_size 8 --max_epochs 1 --accelerator cpu --devices 1 --resume auto"
    for said in ("val_acc", "nothing to do"):
        command = [sys.executable, "-c", RUN_AS_ON_WINDOWS, str(SCRIPT), *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert done.returncode == 0, done.stderr
        assert "locked" in done.stdout
        assert said in done.stdout
        assert "Traceback" not in done.stderr
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()
