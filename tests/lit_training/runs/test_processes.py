"""After a signal or a hang a run ends in time, with the right exit code and message."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_training.runs import processes
from lit_training.runs.processes import Watch, requeue_slurm_job
from tests.support.commands import ENVIRONMENT
from tests.support.fits import parse
from tests.support.forks import Fork
from tests.support.slurm import JOB, stand_in_scontrol


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a fake ``scontrol`` writes its arguments."""
    log_file, path = stand_in_scontrol(tmp_path)
    monkeypatch.setenv("PATH", path)
    return log_file


@pytest.mark.parametrize(
    ("extra", "job"),
    [({}, "17"), ({"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "3"}, "16_3")],
)
def test_a_slurm_job_is_requeued_when_its_time_is_over(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, str], job: str
) -> None:
    for name, value in {**JOB, **extra}.items():
        monkeypatch.setenv(name, value)
    requeue_slurm_job(signal.SIGUSR1)
    assert scontrol.read_text() == f"requeue {job}\n"


@pytest.mark.parametrize(
    ("signum", "environment"),
    [
        (signal.SIGTERM, JOB),
        (signal.SIGUSR1, {}),
        (signal.SIGUSR1, {**JOB, "SLURM_JOB_NAME": "bash"}),
        (signal.SIGUSR1, {**JOB, "SLURM_JOB_ID": "17; rm -r x"}),
    ],
)
def test_other_signals_and_jobs_without_a_batch_script_do_not_requeue(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch, signum: int, environment: dict[str, str]
) -> None:
    for name in JOB:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    requeue_slurm_job(signum)
    assert not scontrol.exists()


LEAVING = """
import os, sys, threading, time
import torch
from lit_training.runs import processes

class Slow:
    def __init__(self, begun, seconds):
        self.begun, self.seconds, self.sleep = begun, seconds, time.sleep

    def __del__(self):
        self.begun.set()
        self.sleep(self.seconds)

os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1], "WORLD_SIZE": "2"}
child = os.fork()
os.environ["RANK"] = "0" if child else "1"
torch.distributed.init_process_group("gloo")
tensor, begun = torch.zeros(1), threading.Event()
if child:
    time.sleep(0.2)
    torch.distributed.all_reduce(tensor)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
tensor.slow = Slow(begun, 0.5)
torch.distributed.all_reduce(tensor, async_op=True)
del tensor  # a thread of gloo frees it, and is not ready when Python ends
begun.wait()
ending = Slow(begun, 1)
raise SystemExit(3)
"""


@pytest.mark.slow
def test_a_process_that_exits_early_disconnects_first() -> None:
    """Otherwise a thread of gloo that frees a tensor too late says "terminate called without an active exception"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ended = subprocess.run([sys.executable, "-c", LEAVING, port], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert (ended.returncode, ended.stderr) == (3, "")


WATCHED = """
import os, signal, sys
from lit_training.runs.processes import Watch
watch = Watch({timeout})
watch.start()
watch.stepping = {stepping}
{code}
while True:
    signal.pause()
"""


def watched(code: str, stepping: bool = False, timeout: float = 5) -> Fork:
    program = Path(f"{len(list(Path().iterdir()))}.py").resolve()
    program.write_text(WATCHED.format(code=code, stepping=stepping, timeout=timeout))
    return Fork(str(program))


@pytest.mark.slow
def test_the_watch_ends_the_process_without_the_main_thread() -> None:
    started = {
        # A signal before the first step ends the process at once.
        128 + signal.SIGTERM: watched("os.kill(os.getpid(), signal.SIGTERM)"),
        128 + signal.SIGINT: watched("os.kill(os.getpid(), signal.SIGINT)"),
        # Between the first and the last step the second signal ends it.
        128 + signal.SIGUSR1: watched(
            "os.kill(os.getpid(), signal.SIGTERM)\nwhile not watch.signum: pass\nos.kill(os.getpid(), signal.SIGUSR1)",
            stepping=True,
        ),
        # No progress during the timeout.
        1: watched("watch.note_progress()", stepping=True, timeout=0.001),
    }
    ends = {code: (process.communicate()[1], process.returncode) for code, process in started.items()}
    assert [code for _, code in ends.values()] == list(started)
    assert "no step for 0.001 minutes (--timeout)" in ends[1][0]
    assert "Traceback" not in "".join(text for text, _ in ends.values())


@pytest.mark.parametrize(
    ("codes", "first", "reported"), [((), 0, False), ((0,), 0, False), ((1,), 1, False), ((1, 2), 2, True)]
)
def test_exit_code_2_of_a_launched_process_means_that_it_printed_an_error(
    codes: tuple[int, ...], first: int, reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SECONDS_TO_REPORT", 0.2)
    launched = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in codes]
    for process in launched:
        process.wait()
    watch = Watch(5.0)
    watch.trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=launched)))  # type: ignore[assignment]
    assert watch._failed_child() == first
    assert watch.is_reported() == reported


def test_a_signal_at_the_end_of_training_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends between the arrival of a signal and the check of ``stepping``."""

    class Ending(Watch):
        @property
        def stepping(self) -> bool:
            return not self.signum

        @stepping.setter
        def stepping(self, value: bool) -> None: ...

    watch, codes = Ending(5.0), []
    monkeypatch.setattr(watch, "_end", lambda code, _: codes.append(code))
    watch._handle_signal(signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM]


@pytest.mark.parametrize(("nodes", "named", "used"), [(1, None, "lo"), (2, None, None), (1, "eth7", "eth7")])
def test_processes_of_one_machine_use_its_loopback_interface(
    nodes: int, named: str | None, used: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, named or "")
        if named is None:
            monkeypatch.delenv(name)
    parse(f"--accelerator cpu --devices 2 --strategy ddp --num_nodes {nodes}")
    assert {os.environ.get(name) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} == {used}
