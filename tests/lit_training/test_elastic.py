"""A run can go on with another number of processes: its global batch stays the same."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.lit_training.conftest import CopyRun
from tests.support.commands import run, run_well
from tests.support.fits import QUIET, SHAPES, assert_same_end, parse
from tests.support.forks import Fork
from tests.test_distributed import assert_all_ended

SMALL = f"{SHAPES} --accelerator cpu --enable_progress_bar false"
TWO = f"{SMALL} --max_epochs 2 --devices 2"
RUN = Path("lightning_logs/version_0")
HALT = """
import os, signal
from lightning.pytorch import Callback
from lit_training.callbacks.resume import ResumePoint

ResumePoint.TIME_SHARE, ResumePoint.SECONDS_BETWEEN_EXCHANGES = 1e9, 0.0  # a resume point before each step

class Kill(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_global_zero and os.path.exists("kill") and trainer.global_step == int(open("kill").read()):
            os.kill(os.getpid(), signal.SIGKILL)
"""
ROWS = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Rows(LightningDataModule):
    def __init__(self, batch_size: int = 4):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        x = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x, x[:, :1] + x[:, 1:2]), self.batch_size, shuffle=True)
"""


def pretend_two_processes(point: Path) -> None:
    """Change a run of one process with batches of 8 to one of two processes with batches of 4."""
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    config["trainer"]["devices"], config["data"]["init_args"]["batch_size"] = 2, 4
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    saved = torch.load(point, weights_only=True)
    [state] = [state for state in saved["callbacks"].values() if "loaders" in state]
    [own] = state["own"]
    loss, batches = own["model"]["epoch_losses",]
    state["shape"][0], state["threads"] = 2, (3, 4)
    parts = [(loss * part, batches) for part in (0.5, 1.5)]
    state["own"] = [{**own, "model": {**own["model"], ("epoch_losses",): part}} for part in parts]
    state["loaders"] *= 2
    state["shuffled"] = [True]  # as with ddp
    torch.save(saved, point)


@pytest.mark.usefixtures("at_every_step")
def test_one_process_goes_on_with_the_batches_of_two(copy_run: CopyRun) -> None:
    """With half the steps, and in the first and in the second epoch, whose losses both processes had summed."""
    line = f"{SHAPES} --data.batch_size 8 --max_epochs 3"
    whole = copy_run(line, root="whole")
    copy_run(line, 4)
    pretend_two_processes(RUN / "checkpoints/resume/last.ckpt")
    cli = parse(f"{SMALL} --resume {RUN} --devices 1 --log_every_n_steps 2")
    trainer: Any = cli.trainer
    assert trainer.threads == (6, 8)
    trainer.threads = (1, 1)
    trainer.fit(cli.model, cli.datamodule, weights_only=True)
    assert_same_end(whole, RUN)
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert (config["trainer"]["devices"], config["data"]["init_args"]["batch_size"], config["threads"]) == (2, 4, 3)


def test_number_that_cannot_keep_the_global_batch_is_refused(copy_run: CopyRun) -> None:
    line = f"{SHAPES} --data.batch_size 8 --max_epochs 2"
    copy_run(line, 4)
    has = f"fit.py: error: {RUN} has a global batch of 8 (8 on each of 1 device)"
    own = f"or --resume {RUN} without --data.batch_size\n"
    for flags, said in (
        (f"--resume {RUN} --devices 3", f"{has}, which 3 devices cannot share equally: --devices 2\n"),
        (f"--resume {RUN} --devices 2 --data.batch_size 8", f"{has}: --data.batch_size 4, {own}"),
        (f"--resume {RUN} --data.batch_size 4", f"{has}: --data.batch_size 8, {own}"),
        (f"{QUIET} {line} --devices 2 --resume auto", f"{has}: --data.batch_size 4, {own}"),
    ):
        assert run(f"fit.py {flags}") == (2, "", said)
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    ("flags", "begins"),
    [
        ("--devices 2", "with 4"),  # the default: together 8
        ("--devices 2 --data.batch_size 4", "with 4"),
        ("--devices 4 --data.batch_size 2", "with 2"),
        ("--devices 1 --data.batch_size 4", "a new run"),
        ("--devices 2 --data.batch_size 4 --model.lr 0.5", "a new run"),
    ],
)
def test_auto_finds_the_run_of_the_same_command_on_other_devices(flags: str, begins: str, copy_run: CopyRun) -> None:
    line = f"{SHAPES} --max_epochs 2"
    copy_run(f"{line} --data.batch_size 8 --devices 1", 4)
    start = parse(f"{QUIET} {line} {flags} --resume auto").run.start
    assert start is not None
    assert begins == ("a new run" if start.folder.name == "version_1" else f"with {start.kept['batch_size']}")


@pytest.mark.usefixtures("at_every_step")
def test_own_loader_whose_order_depends_on_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_rows.py").write_text(ROWS)
    monkeypatch.syspath_prepend(".")
    flags = "--model LitMLP --model.in_features 5 --model.out_features 1 --data own_rows.Rows --max_epochs 1"
    run_well(f"fit.py {flags} --data.batch_size 8 --accelerator cpu --devices 1")
    pretend_two_processes(RUN / "checkpoints/resume/last.ckpt")
    ended = run(f"fit.py --resume {RUN} --devices 1 --max_epochs 2")
    said = "with its loader and this strategy, a run of 2 processes cannot go on with 1: --strategy ddp"
    assert (ended.code, ended.err) == (2, f"fit.py: error: {said}, or --resume never\n")


def end(line: str, code: int = 0) -> None:
    """Run fit.py in new processes; check its exit code."""
    process = Fork(f"fit.py {line}")
    output = process.communicate()
    assert process.returncode == code, output


def assert_close(one: Path, two: Path) -> None:
    """Assert that the weights of two finished runs are equal within 2e-6, and their training losses too."""
    a, b = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, two))
    assert a["global_step"] == b["global_step"]
    for name, weight in a["state_dict"].items():
        assert torch.allclose(weight, b["state_dict"][name], rtol=0, atol=2e-6), name
    losses: list[Any] = [run["train_loss"] for run in (_last_row(one), _last_row(two))]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


def _last_row(run: Path) -> dict[str, str]:
    head, *_, row = (run / "metrics.csv").read_text().splitlines()
    return dict(zip(head.split(","), row.split(","), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "processes"),
    [
        (f"{SHAPES} --max_epochs 2 --strategy ddp", (2, 1, 2)),
        (f"{SHAPES} --data.augment true --accumulate_grad_batches 3 --max_epochs 2", (1, 2, 1)),
        ("--model LitDynamic --data.in_features 20 --data.steps 6 --data.batch_size 9 --max_epochs 2", (1, 3, 1)),
        ("--model LitMLP --data own_rows.Rows --model.in_features 5 --model.out_features 1 --strategy ddp", (2, 1, 2)),
    ],
    ids=["cnn", "augmented and accumulated", "dynamic net on three", "own loader"],
)
def test_killed_and_resized_run_ends_like_an_undisturbed_one(flags: str, processes: tuple[int, ...]) -> None:
    Path("own_halt.py").write_text(HALT)
    Path("own_rows.py").write_text(ROWS)
    line = f"{flags} --accelerator cpu --enable_progress_bar false --callbacks own_halt.Kill"
    end(f"{line} --devices {processes[0]} --default_root_dir whole")
    for step, number in zip(("1", "3", ""), processes, strict=True):
        Path("kill").write_text(step or "-1")
        how = (
            f"{line} --devices {number} --resume auto"
            if number == processes[0]
            else f"--resume latest --devices {number}"
        )
        end(how, code=-9 if step else 0)
    assert_close(Path("whole") / RUN, RUN)


def test_processes_of_a_failed_test_are_killed() -> None:
    """Otherwise the suite would never end."""
    process = Fork(f"fit.py {SMALL} --devices 2 --strategy ddp --max_epochs 1000000")
    process.read_until("device")
    Fork.end_all()
    assert process.returncode == -signal.SIGKILL
    assert_all_ended(process.pid)


@pytest.mark.slow
def test_finished_run_gets_more_epochs_on_other_devices() -> None:
    line = f"{SMALL} --data.train_size 24 --data.val_size 8"
    end(f"{line} --devices 2 --max_epochs 2 --default_root_dir whole")
    end(f"{line} --devices 2 --max_epochs 1")
    end("--resume latest --devices 1 --max_epochs 2")
    assert_close(Path("whole") / RUN, RUN)
