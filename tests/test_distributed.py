"""Several processes, on one machine and on what they take for two."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_training.cli import FitCLI
from lit_training.messages import UsageError

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--data.train_size", "24", "--data.val_size", "8", "--accelerator", "cpu", "--strategy", "ddp"]
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""127.0.0.1, ::1 and the former written as the latter, as /proc/net/tcp spells them."""
ENDLESS = [*TINY, "--max_epochs", "100000"]


def worlds(job: str, place: Path) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "worlds"), job, str(place)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((place / "result.json").read_text())


@pytest.mark.slow
def test_evaluation_is_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    """To the last bit: each batch is the same batch on any number of processes, and their sums are added exactly.

    The same rows in other batches differ, on this network by up to 5e-7 of a row's loss (batches of one, whose products
    take another path through the library) and often not at all.
    """
    found = worlds("evaluation", tmp_path)
    assert [metrics["mine"] for metrics in found["153 on 3"]["metrics"]] == [60, 53, 40]
    assert [metrics["mine"] for metrics in found["7 on 3"]["metrics"]] == [7, 0, 0]  # some get nothing
    for pictures in (153, 7, 2):
        alone = found[f"{pictures} on 1"]
        assert sum(alone["confusion"]) == pictures
        assert len(alone["predictions"][0]) == pictures
        for ranks in (2, 3):
            together = found[f"{pictures} on {ranks}"]
            assert together["confusion"] == alone["confusion"]
            for metrics in together["metrics"]:  # every rank knows all
                assert metrics["counted"] == pictures
                assert metrics["val_acc"] == alone["metrics"][0]["val_acc"]
                assert metrics["val_loss"] == alone["metrics"][0]["val_loss"]
            assert together["predictions"] == alone["predictions"] * ranks


@pytest.mark.slow
def test_a_summed_loss_is_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    found = worlds("sums", tmp_path)
    assert found["1"][0] > 0
    assert found["2"] == found["1"] * 2
    assert found["3"] == found["1"] * 3


@pytest.mark.slow
def test_processes_and_accumulation_give_the_weights_of_the_union_batch(tmp_path: Path) -> None:
    """Within 2e-6 after 8 or 16 steps: float32 sums in another order. A summed loss stays the sum over the union."""
    for ways in worlds("union", tmp_path).values():
        weights, _ = ways.pop("1 x 12 x 1")
        for cut, (others, _) in ways.items():
            assert np.allclose(weights, others, rtol=0, atol=2e-6), cut
        assert ways["2 x 6 x 1"][1] > 0


@pytest.mark.slow
def test_uneven_batches_of_a_batchnorm_model_do_not_hang(tmp_path: Path) -> None:
    assert worlds("uneven", tmp_path) == {"2": [6, 6], "3": [4, 4, 4]}


@pytest.mark.slow
def test_nan_on_one_rank_ends_all_with_its_step(tmp_path: Path) -> None:
    said = worlds("nan", tmp_path)["said"]
    assert said[0] == said[1]
    assert said[0].startswith("the loss became nan at step 2 (epoch 1, batch 1: samples ")


def test_fsdp_needs_a_gpu_and_says_so() -> None:
    with pytest.raises(UsageError, match=r"(?i)gpu"):
        FitCLI([*TINY[:4], "--accelerator", "cpu", "--strategy", "fsdp", "--devices", "1"])


def test_fsdp_is_configured_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Construction alone, for want of a GPU: training with it is untested."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for module in ("fabric.accelerators.cuda", "pytorch.accelerators.cuda"):
        monkeypatch.setattr(f"lightning.{module}.num_cuda_devices", lambda: 2)
    cli = FitCLI([*TINY[:4], "--accelerator", "gpu", "--strategy", "fsdp", "--devices", "2", "--logger", "false"])
    assert type(cli.trainer.strategy).__name__ == "FSDPStrategy"
    assert cli.trainer.world_size == 2


# --- real programs ------------------------------------------------------------------------------------------------


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A program in a session of its own, so that what it leaves behind can be seen."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def train(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return start(str(ROOT / "scripts" / "fit.py"), *arguments, **environment)


def until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines))


def members(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.name))
    return found


def listening(processes: list[int]) -> list[str]:
    """Addresses, in the kernel's hexadecimal spelling, at which these processes wait for others."""
    links = [link for pid in processes for link in Path(f"/proc/{pid}/fd").iterdir()]
    own = set()
    for link in links:
        with contextlib.suppress(OSError):  # closed meanwhile
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
def test_a_signal_ends_two_processes_with_a_resume_point_and_its_code(signum: signal.Signals, whom: str) -> None:
    process = train(*ENDLESS, "--devices", "2")
    until(process, "epoch")
    everybody = members(process.pid)
    elsewhere = [address for address in listening(everybody) if address not in LOOPBACK]
    assert len(elsewhere) <= 1  # where they meet: torch binds it to all interfaces
    if whom == "all":
        os.killpg(process.pid, signum)
    else:
        os.kill(process.pid if whom == "first" else next(pid for pid in everybody if pid != process.pid), signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, output
    assert f"stopped by {signum.name} after step" in output
    assert "Traceback" not in output
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").exists()
    assert members(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_one_process_with_a_resume_point_and_its_code(signum: signal.Signals, tmp_path: Path) -> None:
    """Under SLURM, whose command is a stand-in that writes down what it was asked."""
    asked, command = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    command.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": f"{command.parent}:{os.environ['PATH']}"}
    process = train(*TINY[:-2], "--max_epochs", "100000", "--devices", "1", **slurm)
    until(process, "epoch")
    os.kill(process.pid, signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, output
    assert f"stopped by {signum.name} after step" in output
    assert "Traceback" not in output
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").exists()
    assert (asked.read_text() if asked.exists() else "") == ("requeue 17\n" if signum == signal.SIGUSR1 else "")
    assert members(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["hangs", "dies"])
def test_a_rank_that_hangs_or_dies_ends_the_job(what: str) -> None:
    process = train(*ENDLESS, "--devices", "2", "--timeout", "0.05")
    until(process, "epoch")
    child = next(pid for pid in members(process.pid) if pid != process.pid)
    os.kill(child, signal.SIGSTOP if what == "hangs" else signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (1, 2), output
    errors = [line for line in output.splitlines() if "error" in line]
    assert len(errors) == 1, output
    assert ("--timeout" if what == "hangs" else "training process ended") in errors[0]
    assert "Traceback" not in output
    assert members(process.pid) == []


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "variables"])
def test_two_nodes_train_resume_and_stop_at_the_end(launcher: str) -> None:
    command = [*TINY, "--devices", "1", "--num_nodes", "2", "--max_epochs", "1", "--resume", "auto"]
    for expected in ("val_acc", "nothing to do"):
        port = free_port()
        nodes = []
        for node in ("0", "1"):
            if launcher == "torchrun":
                options = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", node, "--master_port", port]
                options += ["--master_addr", "127.0.0.1", str(ROOT / "scripts" / "fit.py")]
                nodes.append(start("-m", "torch.distributed.run", *options, *command))
            else:
                nodes.append(train(*command, NODE_RANK=node, MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
        outputs = [process.communicate(timeout=120)[0] for process in nodes]
        assert [process.returncode for process in nodes] == [0, 0], outputs
        assert expected in outputs[0]
        assert "lightning_logs" not in outputs[1]  # one of them speaks
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
