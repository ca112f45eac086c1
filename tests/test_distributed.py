"""Training and evaluation with several processes, on one node and on two simulated nodes."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.text import command
from lit_training.errors import UsageError
from tests.support.commands import ROOT
from tests.support.fits import SHAPES, SMALL_NET, assert_same_weights, last, parse
from tests.support.forks import Fork
from tests.support.slurm import JOB, stand_in_scontrol

TINY = f"{SHAPES} --accelerator cpu --strategy ddp"
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""The addresses 127.0.0.1, ::1 and ::ffff:127.0.0.1 in the format of /proc/net/tcp."""
ENDLESS = f"{TINY} --max_epochs 100000"


def run_worlds(job: str, place: Path) -> dict[str, Any]:
    """Run a job of tests/worlds with several numbers of processes; return its results."""
    wait_for_end(Fork(f"{ROOT / 'tests' / 'worlds'} {job} {place}"), 0)
    return json.loads((place / "result.json").read_text())


@pytest.mark.slow
def test_evaluation_is_bit_equal_for_any_number_of_processes(tmp_path: Path) -> None:
    """Each batch is the same for any number of processes, and sums over batches are exact.

    The batches must be the same: the loss of a row in a batch of 1 had a relative difference of up to 1e-7 (LeNet) and
    5e-7 (resnet18) from the loss in a batch of 100 (AMD EPYC; batches of 51, 77 and 100 gave equal bits).
    """
    found = run_worlds("evaluation", tmp_path)
    assert [metrics["mine"] for metrics in found["153 on 3"]["metrics"]] == [60, 53, 40]
    assert [metrics["mine"] for metrics in found["7 on 3"]["metrics"]] == [7, 0, 0]  # some processes have no sample
    for pictures in (153, 7, 2):
        alone = found[f"{pictures} on 1"]
        assert sum(alone["confusion"]) == pictures
        assert len(alone["predictions"][0]) == pictures
        for ranks in (2, 3):
            together = found[f"{pictures} on {ranks}"]
            assert together["confusion"] == alone["confusion"]
            for metrics in together["metrics"]:  # every rank has the metrics of all samples
                assert metrics["counted"] == pictures
                assert metrics["val_acc"] == alone["metrics"][0]["val_acc"]
                assert metrics["val_loss"] == alone["metrics"][0]["val_loss"]
            assert together["predictions"] == alone["predictions"] * ranks


@pytest.mark.slow
def test_summed_loss_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    found = run_worlds("sums", tmp_path)
    assert found["1"][0] > 0
    assert found["2"] == found["1"] * 2
    assert found["3"] == found["1"] * 3


@pytest.mark.slow
def test_processes_and_accumulation_give_the_weights_of_the_combined_batch(tmp_path: Path) -> None:
    """Weights are equal within 2e-6 after 8 or 16 steps (float32 sums in another order). A summed loss is a total.

    The dynamic net draws one depth per step on any number of processes. With accumulation it draws one depth per batch,
    so there only the number of processes is compared.
    """
    found = run_worlds("union", tmp_path)
    for name, ways in found.items():
        weights, loss, depths = ways.pop("1 x 12 x 1")
        for cut, (others, their_loss, their_depths) in ways.items():
            assert np.allclose(weights, others, rtol=0, atol=2e-6), (
                name,
                cut,
                np.abs(np.subtract(weights, others)).max(),
            )
            if name == "dynamic net":
                assert their_depths == depths
                assert set(depths) == {0, 1, 2, 3}
            if cut == "2 x 6 x 1":  # sum or mean over all processes
                assert their_loss == pytest.approx(loss, rel=1e-5)
    assert list(found["dynamic net"]) == ["2 x 6 x 1"]


@pytest.mark.slow
def test_uneven_batches_with_batchnorm_do_not_hang(tmp_path: Path) -> None:
    assert run_worlds("uneven", tmp_path) == {"2": [6, 6], "3": [4, 4, 4]}


@pytest.mark.slow
def test_nan_on_one_rank_ends_all_ranks_with_the_same_message(tmp_path: Path) -> None:
    said = run_worlds("nan", tmp_path)["said"]
    assert said[0] == said[1]
    assert said[0].startswith("the loss became nan at step 2 (epoch 1, batch 1: samples ")


def test_fsdp_without_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"(?i)gpu"):
        parse(f"{SHAPES} --accelerator cpu --strategy fsdp --devices 1")


def test_fsdp_is_configured_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the Trainer is built, because the tests have no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for module in ("fabric.accelerators.cuda", "pytorch.accelerators.cuda"):
        monkeypatch.setattr(f"lightning.{module}.num_cuda_devices", lambda: 2)
    cli = parse(f"{SHAPES} --accelerator gpu --strategy fsdp --devices 2 --logger false")
    assert type(cli.trainer.strategy).__name__ == "FSDPStrategy"
    assert cli.trainer.world_size == 2


# --- new processes ----------------------------------------------------------------------------------------------------


def train(line: str, **environment: str) -> Fork:
    return Fork(f"fit.py {line}", **environment)


def processes_of_session(session: int) -> list[int]:
    """Return the ids of the processes of a session that are still running."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.name))
    return found


def assert_all_ended(session: int) -> None:
    """Fail if a process of the session still runs after a while; one that exits may be seen for a moment."""
    until = time.monotonic() + 100  # a process that was left running would stay
    while (found := processes_of_session(session)) and time.monotonic() < until:
        time.sleep(0.05)
    assert found == []


def listening_addresses(processes: list[int]) -> list[str]:
    """Return the addresses, in the kernel's hexadecimal format, on which these processes listen."""
    links = [link for pid in processes for link in Path(f"/proc/{pid}/fd").iterdir()]
    own = set()
    for link in links:
        with contextlib.suppress(OSError):  # it was closed
            own.add(str(link.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.append(fields[1].partition(":")[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "whom"),
    [(signal.SIGTERM, "all"), (signal.SIGTERM, "first"), (signal.SIGINT, "all"), (signal.SIGUSR1, "second")],
)
def test_signal_ends_two_processes_with_a_resume_point_and_its_code(signum: signal.Signals, whom: str) -> None:
    process = train(f"{ENDLESS} --devices 2")
    process.read_until("epoch")
    everybody = processes_of_session(process.pid)
    elsewhere = [address for address in listening_addresses(everybody) if address not in LOOPBACK]
    assert len(elsewhere) <= 1  # the rendezvous: torch binds it to all interfaces
    if whom == "all":
        os.killpg(process.pid, signum)
    else:
        os.kill(process.pid if whom == "first" else next(pid for pid in everybody if pid != process.pid), signum)
    output = "".join(process.communicate())
    assert process.returncode == 128 + signum, output
    assert f"stopped by {signum.name} after step" in output
    assert "Traceback" not in output
    assert Path("lightning_logs/version_0/checkpoints/resume/last.ckpt").exists()
    assert_all_ended(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_ends_one_process_with_a_resume_point_and_its_code(signum: signal.Signals, tmp_path: Path) -> None:
    """The process runs as in a SLURM job, with a fake ``scontrol``."""
    asked, path = stand_in_scontrol(tmp_path)
    slurm = {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": path}
    process = train(f"{SHAPES} --accelerator cpu --max_epochs 100000 --devices 1", **slurm)
    process.read_until("epoch")
    os.kill(process.pid, signum)
    output = "".join(process.communicate())
    assert process.returncode == 128 + signum, output
    assert f"stopped by {signum.name} after step" in output
    assert "Traceback" not in output
    assert Path("lightning_logs/version_0/checkpoints/resume/last.ckpt").exists()
    assert (asked.read_text() if asked.exists() else "") == ("requeue 17\n" if signum == signal.SIGUSR1 else "")
    assert_all_ended(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["hangs", "dies"])
def test_rank_that_hangs_or_dies_ends_the_job(what: str) -> None:
    process = train(f"{ENDLESS} --devices 2 --timeout 0.05")
    process.read_until("epoch")
    child = next(pid for pid in processes_of_session(process.pid) if pid != process.pid)
    os.kill(child, signal.SIGSTOP if what == "hangs" else signal.SIGKILL)
    output = "".join(process.communicate())
    assert process.returncode in (1, 2), output
    errors = [line for line in output.splitlines() if "error" in line]
    assert len(errors) == 1, output
    assert ("--timeout" if what == "hangs" else "another rank ended") in errors[0]
    assert "Traceback" not in output
    assert_all_ended(process.pid)


TROUBLE = """
import os, time
from pathlib import Path
from lightning.pytorch import Callback
from lit_training.callbacks.resume import ResumePoint

ResumePoint.TIME_SHARE, ResumePoint.SECONDS_BETWEEN_EXCHANGES = 1e9, 0.0  # a resume point after each step

class FullDisk(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5 and trainer.is_global_zero and Path("trouble").exists():
            with open(Path(trainer.default_root_dir, "filler"), "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass

class Waiting(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5 and trainer.global_rank == 1 and Path("wait").exists():
            Path("wait").unlink()
            time.sleep(600)

class LostPhoto(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        here = f"rank {trainer.global_rank}, step {trainer.global_step}"
        if Path("trouble").exists() and Path("trouble").read_text() == here:
            loader = trainer.train_dataloader
            keys = list(iter_of(loader.sampler))[(batch_idx + 1) * loader.batch_size :]
            name = loader.dataset.paths[keys[0] % len(loader.dataset)]
            os.rename(loader.dataset.root / name, "away.jpg")
            Path("lost").write_text(str(loader.dataset.root / name))

def iter_of(sampler):
    again = type(sampler)(sampler.length, sampler.num_replicas, sampler.rank, sampler.seed, sampler.shuffle)
    again.set_epoch(sampler.epoch)
    return again
"""
FINETUNING = f"{SMALL_NET} --model.freeze false --data.image_size 72 --accelerator cpu"


def wait_for_end(process: Fork, code: int) -> str:
    """Wait for a program that must end with exit code ``code`` and end all its processes; return its output."""
    output = "".join(process.communicate())
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert_all_ended(process.pid)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("what", ["two processes", "loader workers"])
def test_full_disk_ends_all_processes_in_one_line_and_the_run_can_be_resumed(
    what: str, small_disk: Path, photo_folder: Path, tmp_path: Path
) -> None:
    Path("own_trouble.py").write_text(TROUBLE)
    if what == "two processes":
        line = f"{TINY} --devices 2 --max_epochs 3"  # 3 steps per epoch
    else:  # 4 steps per epoch
        line = f"--data {photo_folder} {FINETUNING} --data.num_workers 2 --devices 1 --max_epochs 2"
    line += " --callbacks own_trouble.FullDisk"
    wait_for_end(train(line), 0)
    line += f" --default_root_dir {small_disk} --resume auto"
    Path("trouble").touch()
    output = wait_for_end(train(line, TMPDIR=str(tmp_path)), 2)
    [said] = [line for line in output.splitlines() if "error" in line]
    assert said.startswith("fit.py: error: cannot write ")
    assert "No space left on device" in said
    run = small_disk / "lightning_logs" / "version_0"
    assert last(run)["global_step"] == 5
    (small_disk / "filler").unlink()
    Path("trouble").unlink()
    wait_for_end(train(line), 0)
    assert_same_weights(Path("lightning_logs/version_0"), run)


@pytest.mark.slow
def test_missing_photo_in_one_of_two_processes_ends_both(photo_folder: Path) -> None:
    Path("own_trouble.py").write_text(TROUBLE)
    line = f"--data {photo_folder} {FINETUNING} --data.batch_size 2 --max_epochs 3 --strategy ddp --devices 2"
    line += " --data.num_workers 0 --callbacks own_trouble.LostPhoto"
    wait_for_end(train(line), 0)  # 12 steps
    line += " --default_root_dir broken --resume auto"
    run = Path("broken/lightning_logs/version_1")
    (run.parent / "version_0").mkdir(parents=True)
    for rank, step in ((0, 5), (1, 8)):
        Path("trouble").write_text(f"rank {rank}, step {step}")
        output = wait_for_end(train(line), 2)
        said = [line for line in output.splitlines() if "error" in line]
        photo = Path("lost").read_text()
        assert said == [
            f"fit.py: error: {photo}: unreadable (No such file or directory), but it was readable when the run "
            f"started: restore it, then go on with {command('fit.py')} --resume {run}"
        ]
        assert step <= last(run)["global_step"] <= step + 1
        Path("away.jpg").rename(photo)
        Path("trouble").unlink()
    wait_for_end(train(line), 0)
    assert_same_weights(Path("lightning_logs/version_0"), run)
    starts = json.loads((run / "run.json").read_text())
    assert [start["machine"]["processes"] for start in starts] == [2, 2, 2]


KILL_ALL = (
    TROUBLE.partition("class FullDisk")[0]
    + """
import signal
class KillAll(Callback):
    def on_train_batch_end(self, trainer, *_):
        if Path("kill").exists() and trainer.global_step == 5:
            Path("kill").unlink(missing_ok=True)
            os.killpg(os.getpgrp(), signal.SIGKILL)
"""
)
OWN_LOADERS = "--model tests.support.own_loaders.Net --data tests.support.own_loaders.OwnData --strategy ddp"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ddp_spawn", "shuffled", "own generators", "stream"])
def test_killed_processes_go_on_as_an_uninterrupted_run(what: str) -> None:
    Path("kill_all.py").write_text(KILL_ALL)
    line = TINY.replace("ddp", what) if what == "ddp_spawn" else f"{OWN_LOADERS} --data.kind '{what}' --accelerator cpu"
    line += " --devices 2 --max_epochs 3 --callbacks kill_all.KillAll"
    wait_for_end(train(line), 0)
    Path("kill").touch()
    line += " --default_root_dir killed --resume auto"
    wait_for_end(train(line), -signal.SIGKILL)
    run = Path("killed/lightning_logs/version_0")
    assert 0 < last(run)["global_step"] < 9
    wait_for_end(train(line), 0)
    assert_same_weights(Path("lightning_logs/version_0"), run)


def free_port() -> str:
    """Return a local port that no program uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_train_resume_and_stop_at_the_end() -> None:
    line = f"{TINY} --devices 1 --num_nodes 2 --max_epochs 1 --resume auto"
    for expected in ("val_acc", "nothing to do"):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        nodes = [train(line, NODE_RANK=node, **place) for node in "01"]
        outputs = [process.communicate()[0] for process in nodes]
        assert [process.returncode for process in nodes] == [0, 0], outputs
        assert expected in outputs[0]
        assert "lightning_logs" not in outputs[1]  # only one node prints
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.slow
def test_killed_torchrun_ends_both_nodes_and_the_restarted_run_is_the_same() -> None:
    Path("own_trouble.py").write_text(TROUBLE)  # it writes a resume point after each step
    Path("torchrun.py").write_text("from torch.distributed.run import main\nmain()")
    line = f"{TINY} --max_epochs 3 --callbacks own_trouble.Waiting"
    wait_for_end(train(f"{line} --devices 2 --default_root_dir whole"), 0)
    Path("wait").touch()
    for is_killed in (True, False):
        options = f"--nnodes 2 --nproc_per_node 1 --master_addr 127.0.0.1 --master_port {free_port()}"
        script = f"{ROOT / 'scripts' / 'fit.py'} {line} --devices 1 --num_nodes 2 --resume auto"
        torchrun = f"{Path('torchrun.py').resolve()} {options}"
        agents = [Fork(f"{torchrun} --node_rank {node} {script}") for node in (0, 1)]
        if is_killed:
            while Path("wait").exists():
                assert agents[1].returncode is None, agents[1].communicate()
                time.sleep(0.05)
            children = f"/proc/{agents[1].pid}/task/{agents[1].pid}/children"
            [worker] = Path(children).read_text().split()
            os.kill(agents[1].pid, signal.SIGKILL)
        outputs = [agent.communicate()[0] for agent in agents]
        assert [agent.returncode for agent in agents] == ([1, -signal.SIGKILL] if is_killed else [0, 0]), outputs
        assert_all_ended(int(worker))  # torchrun gives each worker its own session
    assert "resume  lightning_logs/version_0/checkpoints/resume/last.ckpt, after step" in outputs[0]
    assert "val_acc" in outputs[0]
    assert "lightning_logs" not in outputs[1]  # only one node prints
    assert_same_weights(Path("whole/lightning_logs/version_0"), Path("lightning_logs/version_0"))
