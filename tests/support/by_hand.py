"""Compute the results of the scripts in a simple way, to check the scripts."""

import os
from collections.abc import Callable, Iterable
from math import comb, sqrt
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CLASSES = ("pear", "plum", "rose", "sloe")
COUNTS = {"train": (5, 4, 2, 1), "val": (2, 3, 5, 7), "test": (4, 1, 3, 3)}
"""Images per class. In ``val`` the numbers of all classes differ. The proportions differ between the splits."""


def four_classes(root: Path) -> None:
    """Write tiny noise images in four classes and three splits; see :data:`COUNTS`."""
    draw = np.random.default_rng(0)
    for split, counts in COUNTS.items():
        for name, count in zip(CLASSES, counts, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def labels(split: str) -> Tensor:
    """Return the labels of the images of :func:`four_classes`, in their order."""
    return torch.tensor([label for label, count in enumerate(COUNTS[split]) for _ in range(count)])


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927)."""
    z = 1.959964
    middle = (right + z * z / 2) / (total + z * z)
    half = z * sqrt(right * (total - right) / total + z * z / 4) / (total + z * z)
    return middle - half, middle + half


def mcnemar_p_value(only_one: int, only_other: int) -> float:
    """Return the probability that tosses of a fair coin give a result at least as uneven as this one."""
    tosses, fewer = only_one + only_other, min(only_one, only_other)
    return min(1.0, 2 * sum(comb(tosses, heads) for heads in range(fewer + 1)) / 2**tosses)


def opened(checkpoint: Path, model_class: Any) -> Any:
    """Load the model of a checkpoint, in evaluation mode."""
    saved = torch.load(checkpoint, weights_only=True)
    model = model_class(**saved["hyper_parameters"])
    model.load_state_dict(saved["state_dict"])
    return model.eval()


def answers(model: Any, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the outputs of the model and the targets for all samples, in the order of the loader."""
    with torch.no_grad():
        parts = [(model(x), y) for x, y in loader]
    return torch.cat([output for output, _ in parts]), torch.cat([target for _, target in parts])


def loss(model: Any, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the loss of a batch. It must be equal to the loss of the model."""
    if model.task == "classification":
        return F.cross_entropy(output, target, weight=weight)
    return F.mse_loss(output, target, reduction=model.reduction)


def data_of_run(data: Any, seed: int, stage: str = "fit") -> Any:
    """Set up a data module as fit.py does in a run with this seed."""
    with mock.patch.dict(os.environ, PL_GLOBAL_SEED=str(seed)):
        data.setup(stage)
        data.loader_of_run = data.train_dataloader() if stage == "fit" else None
    return data


class Trained:
    """The training of fit.py as a loop written by hand.

    Args:
        model: a model with the initial weights of the run.
        data: a data module from :func:`data_of_run`.
        optimizer: optimizer of ``model.parameters()``.
        epochs: number of epochs.
        accumulate: batches per step.
        every_step: called after each step.
        every_epoch: called after each epoch with the validation loss.
        weight: class weights of the training loss.
        depths: depth of a LitDynamic for each batch.
        clip: maximum norm of the gradients.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        *,
        accumulate: int = 1,
        every_step: Callable[[], Any] = lambda: None,
        every_epoch: Callable[[float], Any] = lambda loss: None,
        weight: Tensor | None = None,
        depths: list[int] | None = None,
        clip: float | None = None,
    ) -> None:
        self.train_loss: list[float] = []
        self.val_loss: list[float] = []
        self.val_acc: list[float] = []
        self.rates: list[float] = []
        self.batch_losses: list[float] = []
        self.weights: list[dict[str, Tensor]] = []
        loader, scale = data.loader_of_run, 1 if model.reduction == "sum" else accumulate
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            self.rates.append(optimizer.param_groups[0]["lr"])
            losses = []
            model.train()
            for number, (x, y) in enumerate(loader, start=1):
                output = model(x) if depths is None else model.net(x, depths.pop(0))
                batch_loss = loss(model, output, y, weight)
                losses.append(batch_loss.item())
                (batch_loss / scale).backward()
                if number % accumulate == 0 or number == len(loader):
                    if clip is not None:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    every_step()
            self.batch_losses += losses
            self.train_loss.append(sum(losses) / len(losses))
            output, target = answers(model.eval(), data.val_dataloader())
            self.val_loss.append(float(loss(model, output, target)))
            if model.task == "classification":
                self.val_acc.append(float((output.argmax(1) == target).float().mean()))
            every_epoch(self.val_loss[-1])
            self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
