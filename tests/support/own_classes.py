"""Write models and a data module like a user's own classes, for ``--model own_classes.Model``.

The classes use Lightning, but not this project. A test writes them into its folder.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

OWN = Path(__file__).with_name("own")
SOURCE = '''
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

class Model(LightningModule):
    """Learns from rows of 3 numbers. It logs only a training loss."""
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.net = torch.nn.Linear(width, 1)
    def training_step(self, batch, batch_idx):
        loss = self.net(batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=4)

class PictureModel(LightningModule):
    """Learns from images of shapes. It uses random numbers in each step."""
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(3072, 10))
    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01, 0.9)
'''


def write_own_classes() -> None:
    """Write ``own_classes.py`` into the current folder."""
    Path("own_classes.py").write_text(SOURCE)


def copy_examples() -> None:
    """Copy the files in tests/support/own, which have the examples of docs/your_own.md, into the current folder."""
    for file in OWN.glob("*.py"):
        shutil.copy(file, file.name)


@contextlib.contextmanager
def remember_imports() -> Iterator[None]:
    """At the end, restore ``sys.path`` and forget the modules that were imported from the current folder."""
    before, folder = [*sys.path], str(Path.cwd())
    try:
        yield
    finally:
        sys.path[:] = before
        for name, module in [*sys.modules.items()]:
            if str(getattr(module, "__file__", None)).startswith(folder):
                del sys.modules[name]
                own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == name]
                for kind in own:
                    kind.__name__ = kind.__qualname__ = f"Forgotten{kind.__name__}"  # fit.py searches it by its name
