"""The console: a line per epoch in a log, a bar in a terminal, and nothing else."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from datamodules import RandomDataModule
from lit_models import LitMLP
from lit_training.callbacks.console import EpochLines
from lit_training.callbacks.throughput import Throughput
from tests.support.commands import ENVIRONMENT, ROOT

LINE = re.compile(
    r"epoch (\d)/(\d)  train_loss \S+  val_loss \S+  val_acc \d\.\d{4}  lr \S+  \d+\.\d s  [\d,]+ samples/s(  \*)?"
)


def test_the_star_survives_a_resume() -> None:
    lines = EpochLines("m", "max")
    lines.best.improved({"m": torch.tensor(0.5)})
    resumed = EpochLines("m", "max")
    resumed.load_state_dict(lines.state_dict())
    assert not resumed.best.improved({"m": torch.tensor(0.4)})
    assert resumed.best.improved({"m": torch.tensor(0.6)})


class Stepped(LitMLP):
    def configure_optimizers(self) -> Any:
        sgd = SGD(self.parameters(), lr=1e-3)
        return {"optimizer": sgd, "lr_scheduler": StepLR(sgd, 1, 0.1)}


def printed(bare: Callable[..., Trainer], capsys: pytest.CaptureFixture[str], model: Any, **options: Any) -> list[str]:
    """Return the lines that a training prints on stdout. Assert that it prints nothing on stderr."""
    data = RandomDataModule(in_features=8, out_features=2, length=8, batch_size=4, steps=3)
    callbacks = [Throughput(), EpochLines("val_loss", "min")]
    bare(callbacks=callbacks, enable_progress_bar=True, num_sanity_val_steps=0, **options).fit(model, data)
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out.splitlines()


def test_one_line_per_epoch(bare: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(bare, capsys, Stepped(8, (4,), 2), max_epochs=3)
    assert [line.split("  ")[0] for line in shown] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert [re.search(r" lr (\S+) ", line)[1] for line in shown] == ["0.001", "0.0001", "1e-05"]  # type: ignore[index]
    assert shown[0].endswith("*")


def test_a_run_limited_by_steps_prints_no_number_of_epochs(
    bare: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(bare, capsys, LitMLP(8, (4,), 2), max_steps=6)
    assert [line.split("  ")[0] for line in shown] == ["epoch 1", "epoch 2"]


COMMAND = [sys.executable, str(ROOT / "scripts" / "fit.py"), "--data.train_size=80", "--data.val_size=20"]


@pytest.mark.slow
def test_a_log_and_a_terminal(tmp_path: Path) -> None:
    """A log gets only lines. A terminal on stderr shows a bar meanwhile. With --quiet stderr is empty."""
    controller, terminal = pty.openpty()
    with (tmp_path / "log").open("w") as log:
        watched = subprocess.Popen([*COMMAND, "--max_epochs=2"], stdout=log, stderr=terminal, env=ENVIRONMENT)
        done = subprocess.run([*COMMAND, "--max_epochs=2", "--quiet"], capture_output=True, text=True, env=ENVIRONMENT)
        os.close(terminal)
        bar = bytearray()
        while True:
            try:
                part = os.read(controller, 65536)
            except OSError:  # Linux raises it if the other end is closed
                break
            if not part:
                break
            bar += part
        assert watched.wait() == 0
    os.close(controller)
    shown = [
        LINE.fullmatch(line)
        for line in (tmp_path / "log").read_text().splitlines()
        if line.startswith("epoch ") and "  train_loss" in line
    ]
    assert [match and match.group(1, 2) for match in shown] == [("1", "2"), ("2", "2")]
    assert "\x1b" not in (tmp_path / "log").read_text()
    assert b"epoch 1/2" in bar
    assert b"train_loss" not in bar
    assert done.stderr == ""
    names = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert names == ["epoch", "val_acc", "val_loss", "train_loss", "run"]
