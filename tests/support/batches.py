"""Run fit.py and record the batches and the weights of the network."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from tests.support.commands import run_well
from tests.support.networks import run_of

Batch = tuple[Tensor, Tensor]


class Seen(Callback):
    """Records the batches, weights, learning rates and trained layers of each epoch."""

    __module__ = "lit_training"  # a user's callback with these hooks would turn off the cached features

    runs: ClassVar[list["Seen"]] = []

    def __init__(self) -> None:
        self.train: list[list[Batch]] = []
        self.val: list[list[Batch]] = []
        self.final: list[Batch] = []
        """Batches of the validation after the training."""
        self.weights: list[dict[str, Tensor]] = []
        """Weights before the first epoch, and after each epoch."""
        self.rates: list[dict[str, float]] = []
        """Parameter group -> learning rate, at the first batch of each epoch."""
        self.in_training: list[set[str]] = []
        """Names of the BatchNorm and Dropout layers in training mode, per epoch."""
        self.learning: list[set[str]] = []
        """Names of the parameters that require a gradient, per epoch."""
        self.said = ""
        """stdout of fit.py."""
        self.run = Path()
        """The folder of the run."""
        Seen.runs.append(self)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train.append([])
        if not self.weights:
            self.weights.append(_copied(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.train[-1].append((batch[0].clone(), batch[1].clone()))
        if batch_idx == 0:
            groups = trainer.optimizers[0].param_groups
            self.rates.append({group.get("name", str(number)): group["lr"] for number, group in enumerate(groups)})
            kinds = (nn.BatchNorm2d, nn.Dropout)
            modules = pl_module.named_modules()
            self.in_training.append({name for name, m in modules if isinstance(m, kinds) and m.training})
            self.learning.append({name for name, p in pl_module.named_parameters() if p.requires_grad})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights.append(_copied(pl_module))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.val.append([])

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        kept = self.val[-1] if trainer.state.fn == "fit" else self.final
        kept.append((batch[0].clone(), batch[1].clone()))


def _copied(model: LightningModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("net.")}


def fit(line: str) -> Seen:
    """Run fit.py, which must end with exit code 0. Return the recorded values."""
    flags = "--accelerator cpu --devices 1 --dashboard false --callbacks+ tests.support.batches.Seen"
    said = run_well(f"fit.py {line} {flags}")
    seen = Seen.runs.pop()
    Seen.runs.clear()
    seen.said, seen.run = said, run_of().absolute()
    return seen


def together(batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Join batches: return all their inputs and all their labels."""
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs).numpy(), torch.cat(labels).numpy()


@contextlib.contextmanager
def at(folder: Path) -> Iterator[Path]:
    """Make ``folder`` the current folder and put the caches into it, for a run that several tests use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("TORCH_HOME", str(folder / "torch_home"))
        yield folder
