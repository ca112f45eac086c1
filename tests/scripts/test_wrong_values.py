"""A wrong value of an argument of the user's classes gets one line that names its flag; a bug keeps its traceback."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import BatchSampler, DataLoader

from tests.support.commands import run
from tests.support.own_classes import remember_imports

OWN = """
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

WIDTHS = {1: 8, 2: 16}


class Rows(LightningDataModule):
    def __init__(self, batch_size: int = 4, workers: int = 0, count: int = 8, order: str = "random") -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.rows = TensorDataset(torch.zeros(self.hparams.count, 4), torch.zeros(self.hparams.count).long())

    def train_dataloader(self):
        if self.hparams.order not in ("random", "fixed"):
            raise ValueError(f"order must be random or fixed, not {self.hparams.order}")
        shuffle = self.hparams.order == "random"
        return DataLoader(self.rows, self.hparams.batch_size, shuffle=shuffle, num_workers=self.hparams.workers)


class Stream(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Nothing())


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


class Net(LightningModule):
    def __init__(
        self, dropout: float = 0.1, heads: int = 2, depth: int = 1, layer: str = "ReLU", rule: str = "SGD",
        scale: int = 4, rows: int = 4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if scale < 1:
            raise ValueError("scale must be at least 1")
        if scale == 77:
            self.scales.append(scale)
        self.attention = nn.MultiheadAttention(8, heads)
        self.net = nn.Sequential(nn.Linear(4, WIDTHS[depth]), getattr(nn, layer)(), nn.Dropout(dropout))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0].view(self.hparams.rows, 4)).sum()

    def configure_optimizers(self):
        return getattr(torch.optim, self.hparams.rule)(self.parameters(), 0.1)


class Often(Callback):
    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError("every must be at least 1")

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        model.no_such_layer


class Bare(Callback):
    pass
"""
LINE = "fit.py --model mine.Net --data mine.Rows --max_epochs 1 --accelerator cpu --dashboard false"


METHODS = ("__init__", "__setattr__", "__delattr__")


@pytest.fixture(autouse=True)
def own_classes() -> Iterator[None]:
    """Write the user's classes. Lightning leaves its own methods on loaders if ``train_dataloader`` raises an error."""
    Path("mine.py").write_text(OWN)
    kinds = {kind: vars(kind).copy() for kind in (DataLoader, BatchSampler, *DataLoader.__subclasses__())}
    with remember_imports():
        sys.path.append(str(Path.cwd()))
        yield
    for kind, before in kinds.items():
        for name in METHODS:
            if name in before:
                setattr(kind, name, before[name])
            elif name in vars(kind):
                delattr(kind, name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data.batch_size 0", "--data.batch_size 0: batch_size should be a positive integer value"),
        ("--data.workers -1", "--data.workers -1: num_workers option should be non-negative"),
        ("--data.order rising", "--data.order rising: order must be random or fixed, not rising"),
        ("--data.count 0", "a data loader that shuffles has no samples"),
        ("--data.count 0 --data.order fixed", "train_dataloader gives no batch in epoch 1"),
        ("--data mine.Stream", "train_dataloader gives no batch in epoch 1"),
        ("--model.dropout 2", "--model.dropout 2.0: dropout probability has to be between 0 and 1, but got 2.0"),
        ("--model.heads 3", "--model.heads 3: embed_dim must be divisible by num_heads"),
        ("--model.depth 9", "--model.depth 9: KeyError: 9; change this value"),
        ("--model.layer ReLu", "--model.layer ReLu: AttributeError: module 'torch.nn' has no attribute 'ReLu'"),
        ("--model.rule SGDD", "--model.rule SGDD: AttributeError: module 'torch.optim' has no attribute 'SGDD'"),
        ("--model.scale 0", "--model.scale 0: scale must be at least 1"),
        ("--callbacks mine.Often --callbacks.every 0", "--callbacks.every 0: every must be at least 1"),
        ("--callbacks mine.Bare --callbacks.decay 3", "Bare has no argument decay; leave decay out"),
        ("--callbacks BackboneFinetuning", "BackboneFinetuning: 'Net' object has no attribute 'backbone'; change or"),
        (
            "--callbacks ModelCheckpoint --callbacks.filename {epoch:q}",
            "ModelCheckpoint: Unknown format code 'q' for object of type 'int'; change or remove ModelCheckpoint",
        ),
    ],
)
def test_a_wrong_value_gets_one_line(flags: str, message: str) -> None:
    ended = run(f"{LINE} {flags}")
    assert ended.code == 2
    assert [line for line in ended.err.splitlines() if "error: " in line] == ended.err.splitlines()[-1:]
    assert f"fit.py: error: {message}" in ended.err.replace("--callbacks.decay: ", "")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("--model.scale 77 --model.heads 4", AttributeError),  # in the constructor
        ("--model.rows 3", RuntimeError),  # in a step: shape '[3, 4]' is invalid for input of size 16
        ("--callbacks mine.Often --callbacks.every 3", AttributeError),
    ],
)
def test_a_bug_keeps_its_traceback(flags: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run(f"{LINE} {flags}")
