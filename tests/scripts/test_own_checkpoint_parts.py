"""A user's classes put own objects into the checkpoint: it opens, and what it cannot hold is said."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datamodules.text import print_once
from tests.support.commands import run, run_well
from tests.support.own_classes import remember_imports

TRAIN = "fit.py --data mine.Rows --max_epochs 1 --accelerator cpu --devices 1 --dashboard false --quiet"
BEST = Path("lightning_logs/version_0/checkpoints/best.ckpt")
MINE = """
from collections import deque
from dataclasses import dataclass
from datetime import datetime

import torch
from lightning.pytorch import Callback, LightningDataModule
from lit_models import LitBase
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Seen:
    rows: int = 0


class Rows(LightningDataModule):
    in_features, num_classes = 4, 2

    def setup(self, stage):
        rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        self.rows = TensorDataset(rows, (rows[:, 0] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, 8)

    val_dataloader = train_dataloader


class Stamped(Rows):
    def state_dict(self):
        return {"when": datetime.now()}


class Net(LitBase):
    sample_ndim = 1

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.losses = torch.nn.Linear(in_features, num_classes), deque(maxlen=3)
        self.make_metrics(num_classes)

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Keeps(Net):
    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["mine"], checkpoint["plain"] = {"losses": self.losses, "count": 3}, [3]

    def on_load_checkpoint(self, checkpoint):
        self.losses = checkpoint["mine"]["losses"]


class Extra(Net):
    def get_extra_state(self):
        return Seen(3)

    def set_extra_state(self, state):
        self.seen = state


class Rates(Net):
    def configure_optimizers(self):
        rate = type("Rate", (), {"__call__": lambda self, step: 1.0})()
        rate.seen = Seen(3)
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, rate)]


class Notes(Callback):
    def on_save_checkpoint(self, trainer, model, checkpoint):
        checkpoint["notes"] = Seen(3)
"""


@pytest.fixture(autouse=True)
def own_classes() -> Iterator[None]:
    Path("mine.py").write_text(MINE)
    print_once.cache_clear()
    with remember_imports():
        yield


@pytest.mark.parametrize(
    ("flags", "part"), [("mine.Keeps", "mine (deque)"), ("mine.Extra", "_extra_state (Seen)")], ids=["key", "weights"]
)
def test_a_model_that_needs_what_is_left_out(flags: str, part: str) -> None:
    ended = run(f"{TRAIN} --model {flags}")
    assert ended.code == 0, ended.err
    assert f"note: {part}: checkpoints do not hold it" in ended.err
    assert "val_acc     " in ended.out
    checkpoint = torch.load(BEST, weights_only=True)
    assert "net.weight" in checkpoint["state_dict"]
    assert checkpoint["state_dict"]._metadata  # torch needs the versions of the layers
    assert checkpoint.get("plain", [3]) == [3]
    for command in ("fit.py --resume latest --max_epochs 2 --quiet", "evaluate.py latest"):
        ended = run(command)
        assert ended.code == 2, ended
        assert f"it does not hold {part}: let on_save_checkpoint save plain values" in ended.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["mine.Net --callbacks mine.Notes", "mine.Net --data mine.Stamped"])
def test_parts_that_nothing_needs(name: str) -> None:
    out = run_well(f"{TRAIN} --model {name}")
    assert "val_acc     " in out
    run_well("fit.py --resume latest --max_epochs 2 --quiet")
    assert "val_acc     " in run_well("evaluate.py latest")


def test_a_schedule_that_needs_what_is_left_out() -> None:
    run_well(f"{TRAIN} --model mine.Rates")
    ended = run("fit.py --resume latest --max_epochs 2 --quiet")
    assert (ended.code, "it does not hold lr_schedulers (Seen)" in ended.err.splitlines()[-1]) == (2, True)
