"""Models, data and a callback of a user that change their own attributes while they train."""

import copy
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

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


@dataclass
class Sample:
    rows: Tensor


class Moment(NamedTuple):
    total: Tensor
    batches: int


class Encoder(LightningModule):
    """A LightningModule inside of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0


class Odd(Net):
    """Changes what no checkpoint of Lightning contains: flags, gradients, own objects, weights of hidden modules."""

    automatic_optimization = False

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.inner: Any = nn.Sequential(Encoder())
        self.samples: deque[Sample] = deque(maxlen=4)
        self.moment = Moment(torch.zeros(4), 0)
        self.counts: dict[str, Any] = {"labels": Counter()}
        self.hidden: Any = [copy.deepcopy(self.net)]
        self.mean: Any
        self.register_buffer("mean", torch.zeros(4))
        self.steps = 0

    def on_train_epoch_start(self) -> None:
        self.mean.zero_()
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.9
        self.loggers[0].log_metrics({"epoch_begins": self.current_epoch}, step=self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rows, labels = batch
        self.steps += 1
        if self.steps == 2:
            self.net[0].bias.requires_grad_(False)
            self.net[1].eval()
        self.samples.append(Sample(rows))
        self.moment = Moment(self.moment.total + rows.sum(0), self.moment.batches + 1)
        self.counts["labels"].update(labels.tolist())
        self.inner[0].scale *= 1.1
        self.hparams["tau"] *= 0.9
        self.mean += rows.mean(0)
        for hidden, own in zip(self.hidden[0].parameters(), self.net.parameters(), strict=True):
            hidden.data.lerp_(own.data, 0.1)
        parts = [self.net(one.rows).square().mean() for one in self.samples]
        common = self.counts["labels"].most_common(1)[0][1]
        scale = self.inner[0].scale * self.hparams["tau"] + self.moment.total.mean() / self.moment.batches + common / 9
        teacher = (self.net(rows + self.mean) - self.hidden[0](rows).detach()).square().mean()
        noise = 1.1 if self.net[1].training else 1.0
        self.manual_backward((F.cross_entropy(self.net(rows), labels) * scale * noise + teacher + sum(parts)) / 3)
        if self.steps % 3 == 0:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


class Noisy(LightningDataModule):
    """Its validation data has a generator of its own."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(ROWS, LABELS), 4)

    def val_dataloader(self) -> DataLoader:
        sampler = RandomSampler(TensorDataset(ROWS), num_samples=8, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(ROWS, LABELS), 4, sampler=sampler)


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))


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


class Stream(IterableDataset):
    """Counts its samples in an array."""

    def __init__(self) -> None:
        self.count = np.zeros(1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for row, label in zip(ROWS, LABELS, strict=True):
            self.count += 1
            yield row * self.count[0] / 9, label


class Data(LightningDataModule):
    """The loader of the training data has the name ``kind``."""

    def __init__(self, kind: str = "shuffled") -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> DataLoader:
        rows = TensorDataset(ROWS, LABELS)
        if self.kind == "stream":
            return DataLoader(Stream(), 4)
        if self.kind == "split":
            return DataLoader(random_split(rows, [20, 4])[0], 4, shuffle=True)
        if self.kind == "weighted":
            return DataLoader(rows, 4, sampler=WeightedRandomSampler(torch.rand(24).tolist(), 24))
        return DataLoader(HardExamples() if self.kind == "hard" else rows, 4, shuffle=True)
