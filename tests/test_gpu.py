"""What must hold on a GPU. The tests run on the CPU too, so that they are tested; the marker ``gpu`` needs CUDA.

On a machine with a GPU: ``python -m pytest -m gpu``.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_training.callbacks import compiled
from tests.support.commands import ENVIRONMENT, ROOT, run, run_well
from tests.support.fits import SHAPES, assert_same_end, assert_same_weights, fit, fit_run, kill_and_resume, last, rows
from tests.support.forks import Fork

DEVICES = pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)
DEVICE = pytest.mark.parametrize("device", DEVICES)
EXACT = "--deterministic true"
MODELS = {
    "LeNet": f"{SHAPES} --data.batch_size 4",
    "MLP": "--model LitMLP --data.steps 24",
    "dynamic": "--model LitDynamic --data.steps 24",
    "airbench": f"--model LitAirbench --model.width 0.1 {SHAPES} --data.batch_size 4 --data.augment flip",
}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compute convolutions in float32, not in TF32. Set by --deterministic: the settings of torch are restored."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


def largest_difference(one: Path, other: Path) -> float:
    weights, others = last(one)["state_dict"], last(other)["state_dict"]
    assert list(weights) == list(others)
    pairs = ((weights[name].cpu().double(), others[name].cpu().double()) for name in weights)
    return max(float((a - b).abs().max()) for a, b in pairs)


@DEVICE
@pytest.mark.parametrize("name", ["LeNet", "airbench"])
def test_data_on_the_device_give_the_weights_of_streamed_data(name: str, device: str) -> None:
    line = f"{MODELS[name]} {EXACT} --max_epochs 2 --accelerator {device}"
    runs = [fit_run(f"{line} --data.on_device {way} --default_root_dir {way}") for way in ("true", "false", "auto")]
    for other in runs[1:]:
        assert largest_difference(runs[0], other) <= (1e-5 if device == "cuda" else 0)


@DEVICE
@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_are_those_of_the_cpu(name: str, device: str) -> None:
    """Airbench gets small rates: with its own, noise of 2e-7 in the gradients grows to 3 in 20 steps on a CPU.

    With small rates it grows to 4e-4, in the whitening filters, which are about 100.
    """
    line, allowed = f"{MODELS[name]} {EXACT} --max_steps 20", 1e-5
    if name == "airbench":
        line, allowed = f"{line} --model.lr 0.001 --model.sgd_lr 0.0001", 1e-2
    wanted = fit_run(f"{line} --default_root_dir cpu")
    assert largest_difference(wanted, fit_run(f"{line} --default_root_dir device --accelerator {device}")) < allowed
    assert last(wanted)["global_step"] == 20


@DEVICE
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", ["LeNet", "airbench"])
def test_a_killed_run_resumes_exactly(name: str, precision: str, device: str) -> None:
    """With float16, the factor of the gradients is restored too."""
    line = f"{MODELS[name]} {EXACT} --max_epochs 2 --precision {precision} --accelerator {device}"
    uninterrupted, resumed = kill_and_resume(line, 3, 8)
    assert_same_end(uninterrupted, resumed)
    losses = [float(row["val_loss"]) for row in rows(resumed) if "val_loss" in row]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)


@DEVICE
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_is_close_to_float32(precision: str, device: str) -> None:
    line = f"{MODELS['LeNet']} {EXACT} --max_steps 20 --accelerator {device}"
    whole = fit_run(f"{line} --default_root_dir whole")
    half = fit_run(f"{line} --default_root_dir half --precision {precision}")
    assert 0 < largest_difference(whole, half) < 0.01
    assert {weight.dtype for name, weight in last(half)["state_dict"].items() if "net." in name} == {torch.float32}


class KeepOutputs(Callback):
    """Keeps the outputs of the validation, as a user's callback may do, and copies of them."""

    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []
        self.copies: list[torch.Tensor] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.outputs.append(outputs["output"])
        self.copies.append(outputs["output"].clone())


@DEVICE
@pytest.mark.parametrize("name", ["LeNet", "dynamic"])
def test_compiled_runs_resume_exactly_and_keep_their_outputs(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA with CUDA graphs: without copies, the next step overwrites the outputs that a callback keeps."""
    if device == "cpu":
        monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    line = f"{MODELS[name]} --max_epochs 2 --accelerator {device}"
    plain = fit_run(f"{line} --default_root_dir plain")
    uninterrupted, resumed = kill_and_resume(f"{line} --compile true", 3, 8)
    assert_same_end(uninterrupted, resumed)
    assert largest_difference(plain, resumed) < 1e-5
    if name == "LeNet":
        cli = fit(f"{line} --data.val_size 250 --max_epochs 1 --compile true --default_root_dir kept")
        cli.trainer.callbacks.append(kept := KeepOutputs())  # type: ignore[attr-defined]
        cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
        assert len(kept.outputs) >= 3
        assert all(map(torch.equal, kept.outputs, kept.copies))
    torch._dynamo.reset()


# --- several processes ------------------------------------------------------------------------------------------------


def start(device: str, line: str, **variables: str) -> "Fork | subprocess.Popen[str]":
    """Start a script in a new process that sees the GPUs, or in a fork."""
    if device == "cpu":
        return Fork(line, **variables)
    environment = {**ENVIRONMENT, **variables, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    name, *flags = line.split()
    command, pipe = [sys.executable, str(ROOT / "scripts" / name), *flags], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def program(device: str, line: str) -> str:
    """Run a script that must end with exit code 0; return its stdout."""
    process = start(device, line)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
@DEVICE
def test_ddp_of_one_process_gives_the_weights_of_one_device(device: str) -> None:
    """On CUDA with NCCL, on the CPU with gloo."""
    line = f"fit.py {MODELS['LeNet']} --max_epochs 1 --accelerator {device} --devices 1"
    for strategy in ("auto", "ddp"):
        program(device, f"{line} --strategy {strategy} --default_root_dir {strategy}")
    one, other = (Path(strategy, "lightning_logs/version_0") for strategy in ("auto", "ddp"))
    assert largest_difference(one, other) < 1e-6


TWO = """
import os, sys, torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from datamodules import ShapesDataModule
from lit_models import LitCNN

if __name__ == "__main__":
    device, ranks = torch.device(sys.argv[1]), int(sys.argv[2])
    torch.backends.cudnn.allow_tf32 = False
    seed_everything(0, verbose=False)
    strategy = DDPStrategy(parallel_devices=[device] * ranks, process_group_backend="gloo") if ranks > 1 else "auto"
    accelerator = "auto" if ranks > 1 else {"cuda": "gpu"}.get(device.type, "cpu")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(strategy=strategy, accelerator=accelerator, devices=ranks, max_epochs=2, **quiet)
    model = LitCNN(lr=0.01)
    trainer.fit(model, ShapesDataModule(train_size=24, val_size=8, batch_size=8 // ranks))
    assert trainer.world_size == ranks and trainer.global_step == 6, (trainer.world_size, trainer.global_step)
    if trainer.is_global_zero:
        torch.save({name: weight.cpu() for name, weight in model.net.state_dict().items()}, f"{ranks}.pt")
"""


@pytest.mark.slow
@DEVICE
def test_two_processes_with_gloo_share_one_device(device: str) -> None:
    """They give the weights of one process with batches of twice the size."""
    Path("two.py").write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    name = "cuda:0" if device == "cuda" else device
    for ranks in (1, 2):
        line = f"{Path('two.py').resolve()} {name} {ranks}"
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
        ranked = [{**meeting, "LOCAL_RANK": str(rank)} for rank in range(ranks)] if ranks > 1 else [{}]
        started = [start(device, line, **variables) for variables in ranked]
        printed = [process.communicate(timeout=300) for process in started]
        assert [process.returncode for process in started] == [0] * ranks, printed
    one, two = torch.load("1.pt"), torch.load("2.pt")
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5


@pytest.mark.slow
@DEVICE
def test_the_checkpoint_of_a_sharded_run_predicts(device: str, photo_folder: Path) -> None:
    """FSDP needs CUDA; on the CPU the test runs with DDP."""
    strategy = "fsdp" if device == "cuda" else "ddp"
    flags = f"--model LitCNN --data.image_size 32 --max_epochs 2 --accelerator {device} --devices 1"
    program(device, f"fit.py --data photos {flags} --strategy {strategy}")
    assert (Path("lightning_logs/version_0/checkpoints/best.ckpt")).is_file()
    for accelerator in {"cpu", device}:
        lines = program(device, f"predict.py latest photos/val --accelerator {accelerator}").splitlines()
        assert len(lines) > len([*photo_folder.glob("val/*/*.jpg")])
    program(device, f"fit.py --resume latest --max_epochs 3 --accelerator {device}")


# --- commands ---------------------------------------------------------------------------------------------------------


@DEVICE
def test_the_commands_use_the_device(device: str) -> None:
    out = run_well(f"fit.py {SHAPES} --max_epochs 1 --accelerator auto")
    assert f"device  1 x {device.upper()}, " in out
    printed = [run_well(f"evaluate.py latest --accelerator {name}") for name in ("auto", device, "cpu")]
    accuracies = {line for text in printed for line in text.splitlines() if line.startswith("test_acc ")}
    assert len(accuracies) == 1
    assert run("describe.py latest").code == 0


@pytest.mark.gpu
def test_the_same_command_twice_gives_the_same_bits() -> None:
    line = f"{MODELS['airbench']} --max_epochs 2 --accelerator cuda"
    assert_same_weights(fit_run(f"{line} --default_root_dir a"), fit_run(f"{line} --default_root_dir b"))


@pytest.mark.gpu
def test_full_memory_and_missing_devices_get_one_line() -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)  # a few megabytes
    try:
        ended = run("fit.py --data.batch_size 2048 --accelerator cuda --max_epochs 1")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    line = "fit.py: error: out of memory with 2048 samples per step and device: --data.batch_size 1024"
    assert (ended.code, ended.err.splitlines()[-1].startswith(line)) == (2, True)
    count = torch.cuda.device_count()
    ended = run(f"fit.py --accelerator gpu --devices {count + 1}")
    assert (ended.code, ended.err.count(f"--devices {count}, or auto")) == (2, 1)
