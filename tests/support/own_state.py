"""Models, data and a callback of a user that change their own attributes while they train."""

import itertools
from collections import deque
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler, random_split

ROWS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
LABELS = (ROWS.sum(1) > 0).long()


class Net(LightningModule):
    """A small classifier. ``weight`` scales the loss, so that each wrong value changes the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def weight(self, rows: Tensor) -> Any:
        return 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows, labels = batch
        return F.cross_entropy(self.net(rows), labels) * self.weight(rows)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Endless(Net):
    """Draws from an iterator."""

    def __init__(self) -> None:
        super().__init__()
        self.more = SimpleNamespace(source=itertools.count())

    def weight(self, rows: Tensor) -> Any:
        return next(self.more.source)


class Phase(Enum):
    FIRST = 1
    SECOND = 2


class Counters(Net):
    """Counts and collects in attributes of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.beta, self.phase, self.means = 0.5, Phase.FIRST, np.zeros(4)
        self.last: Any = None
        self.recent: deque[float] = deque(maxlen=3)
        self.generators: list[Any] = [torch.Generator().manual_seed(3), np.random.default_rng(4)]
        self.outputs: list[Tensor] = []
        self.tracker = Tracker()
        self.center = torch.zeros((), requires_grad=True)
        self.of_center = torch.optim.SGD([self.center], 0.1)
        self.scaled: Any = nn.Identity()
        self.scaled.register_buffer("scale", torch.ones(()), persistent=False)

    def weight(self, rows: Tensor) -> Any:
        self.beta += 0.1
        self.phase = Phase.SECOND if self.beta > 1 else Phase.FIRST
        self.means = 0.9 * self.means + 0.1 * rows.mean(0).numpy()
        self.recent.append(float(rows.mean()))
        self.outputs.append(rows.mean(1))
        self.tracker.seen["rows"] = self.tracker.seen.get("rows", 0) + len(rows)
        self.scaled.scale = self.scaled.scale * 1.01
        before, self.last = self.last, rows[0]
        self.of_center.zero_grad()
        (self.center - rows.mean()).square().backward()
        self.of_center.step()
        own = torch.rand((), generator=self.generators[0]) + self.generators[1].normal()
        parts = [self.beta, self.phase.value, self.means.sum(), sum(self.recent), self.tracker.seen["rows"] / 10, own]
        return sum(parts) + self.center.detach() + self.scaled.scale + (0 if before is None else before.sum())

    def on_train_epoch_end(self) -> None:
        rate = torch.cat(self.outputs).mean().abs() * len(self.outputs)
        self.outputs.clear()
        self.trainer.optimizers[0].param_groups[0]["lr"] = 0.1 + float(rate)


class Tracker:
    def __init__(self) -> None:
        self.seen: dict[str, int] = {}


class Averages(Net):
    """Logs averages of an epoch in each way, and adapts its learning rate to them."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(2)
        self.by_hand = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows, labels = batch
        outputs = self.net(rows)
        loss = F.cross_entropy(outputs, labels)
        self.accuracy(outputs, labels)
        self.by_hand.update(loss)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        if batch_idx < 2:
            self.log("early", rows.mean(), on_step=False, on_epoch=True, reduce_fx="sum")
        return loss

    def on_train_epoch_start(self) -> None:
        self.log("start", 1.0, reduce_fx="sum")

    def on_train_epoch_end(self) -> None:
        self.log("mean_by_hand", self.by_hand.compute())
        self.by_hand.reset()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.5)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "loss_epoch"}}


class Level(Callback):
    """Scales the loss of a :class:`Counters` with the number of batches."""

    def __init__(self) -> None:
        self.level = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.level += 1
        pl_module.weight = lambda rows: self.level / 10


class HardExamples(Dataset):
    """Changes an array and a list when a sample is read."""

    def __init__(self) -> None:
        self.reads, self.order = np.zeros(len(ROWS)), [0]

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads[index] += 1
        self.order.append(index)
        return ROWS[index] * self.reads[self.order[-2]] + self.reads.max(), LABELS[index]


class Data(LightningDataModule):
    """The loader of the training data has the name ``kind``."""

    def __init__(self, kind: str = "shuffled") -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> DataLoader:
        rows = TensorDataset(ROWS, LABELS)
        if self.kind == "split":
            return DataLoader(random_split(rows, [20, 4])[0], 4, shuffle=True)
        if self.kind == "weighted":
            return DataLoader(rows, 4, sampler=WeightedRandomSampler(torch.rand(24).tolist(), 24))
        return DataLoader(HardExamples() if self.kind == "hard" else rows, 4, shuffle=True)
