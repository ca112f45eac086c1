"""Data modules with loaders as users write them, and models that draw random numbers."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, WeightedRandomSampler

ROWS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))


class Net(LightningModule):
    """Uses the random numbers of torch, numpy and Python in its steps. A batch is rows, or a dict of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows = torch.cat(list(batch.values())) if isinstance(batch, dict) else batch
        return (self.net(rows * np.random.rand() + random.random()) - rows.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


class ManualNet(Net):
    """Steps its optimizer itself."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class NoisyPictures(LightningModule):
    """Draws random numbers when an epoch begins and when a batch comes to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 1))

    def on_train_epoch_start(self) -> None:
        self.scale = random.random()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + torch.randn_like(batch[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch * self.scale).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-5)


class Augmented(Dataset):
    """Adds noise from the global random numbers."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Tensor:
        return ROWS[index] + torch.randn(4) + np.random.rand() + random.random()


class OwnNoise(Augmented):
    """Adds noise from its own generators."""

    def __init__(self) -> None:
        self.generators: list[Any] = [np.random.default_rng(3), np.random.RandomState(4)]
        self.generator = random.Random(5)

    def __getitem__(self, index: int) -> Tensor:
        return ROWS[index] + self.generators[0].normal() + self.generators[1].rand() + self.generator.random()


class CountedShuffle(Sampler):
    """Counts its epochs, and shuffles by this number."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return len(ROWS)

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(random.Random(self.epoch).sample(range(len(ROWS)), len(ROWS)))


class Stream(IterableDataset):
    """Shuffles the rows at each start. It has no length."""

    def __iter__(self) -> Iterator[Tensor]:
        order = list(range(len(ROWS)))
        random.shuffle(order)
        for index in order:
            yield ROWS[index] + torch.randn(4)


class Batches:
    """An iterable that is not a DataLoader."""

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(6):
            yield ROWS[torch.randperm(len(ROWS))[:4]]


class OwnData(LightningDataModule):
    """The loader of the training data has the name ``kind``."""

    def __init__(self, kind: str, num_workers: int = 0) -> None:
        super().__init__()
        self.kind, options = kind, {"batch_size": 4, "num_workers": num_workers}
        self.options: dict[str, Any] = options

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        if self.kind == "shuffled":
            return DataLoader(Augmented(), shuffle=True, **self.options)
        if self.kind == "own generators":
            return DataLoader(OwnNoise(), shuffle=True, generator=generator, **self.options)
        if self.kind == "own sampler":
            return DataLoader(Augmented(), sampler=CountedShuffle(), **self.options)
        if self.kind == "weighted":
            return DataLoader(Augmented(), sampler=WeightedRandomSampler([*range(24)], 24), **self.options)
        if self.kind == "stream":
            return DataLoader(Stream(), **self.options)
        if self.kind == "iterable":
            return Batches()
        if self.kind == "dict":
            short = DataLoader(Stream(), batch_size=12)
            return {"long": DataLoader(Augmented(), shuffle=True, **self.options), "short": short}
        if self.kind == "persistent":
            return DataLoader(Augmented(), shuffle=True, persistent_workers=True, **self.options)
        assert self.kind == "iterator"
        return iter([row[None] for row in ROWS])
