"""Models and data of many kinds, as users write them for a bare Trainer: ``--model tests.support.own_kinds.Gan``."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import datamodules
from lit_models import LitCNN, LitTransfer


def samples(seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(24, 3, 8, 8, generator=generator), torch.arange(24) % 3)


# --- models that know nothing of this project -------------------------------------------------------------------------


class Plain(LightningModule):
    """Logs under its own names. Its F1 is best in the second epoch."""

    f1 = (0.2, 0.9, 0.5, 0.4)

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("valid/f1", self.f1[self.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class NeedsClasses(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)


class Lazy(Plain):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class NoOptimizer(Plain):
    def configure_optimizers(self) -> None:
        return None


class LossOfShapeOne(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx).view(1)} if batch_idx else None


class OtherMeanings(Plain):
    """Has attributes with names of this project, and other meanings."""

    task, loaded, preprocessing = "multiclass", True, nn.Identity()


class Gan(LightningModule):
    """Manual optimization with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(4, 192), nn.Linear(192, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        made = self.generator(torch.randn(len(batch[0]), 4))
        losses = -self.critic(made).mean(), self.critic(made.detach()).mean() - self.critic(batch[0].flatten(1)).mean()
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("g_loss", losses[0])

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters()) for part in (self.generator, self.critic)], []


class OwnLoader(Plain):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(samples(), 8)


# --- data -------------------------------------------------------------------------------------------------------------


class Data(LightningDataModule):
    num_classes, sample_shape, class_names = 3, (3, 8, 8), {0: "a", 1: "b", 2: "c"}

    def __init__(self, batch_size: Any = 8) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(samples(), 8)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(1), 8)


class Sizes(Data):
    def __init__(self, batch_size: dict[str, int] = {"train": 8, "val": 24}) -> None:  # noqa: B006
        super().__init__(batch_size)


class AfterSetup(Data):
    """Knows its classes after ``setup``."""

    names: Any = None
    num_classes = class_names = sample_shape = property(lambda self: len(self.names))

    def setup(self, stage: str) -> None:
        self.names = ("a", "b", "c")


class NoneBeforeSetup(Data):
    num_classes = None  # type: ignore[assignment]


class Stream(Data):
    """No length. Its methods and attributes have names of this project, and other meanings."""

    preprocessing: Any = {"image_size": 8, "resize_size": 8}  # noqa: RUF012

    def report(self, verbose: bool) -> None: ...

    def train_dataloader(self) -> DataLoader:
        class Rows(IterableDataset):
            def __iter__(self) -> Any:
                return iter(samples())

        return DataLoader(Rows(), 8)

    def val_dataloader(self) -> Any:
        return {"one": super().val_dataloader(), "two": super().val_dataloader()}


class ShapesDataModule(datamodules.ShapesDataModule):
    """Has the name of a class of this project."""


# --- subclasses of this project's models ------------------------------------------------------------------------------


class Wide(LitCNN):
    def __init__(self, width: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width


class OwnSteps(LitCNN):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("macro_f1", 1.0 - self.current_epoch)
        return F.cross_entropy(self(batch[0]), batch[1])


class OwnSchedule(LitCNN):
    """Asks the Trainer for the run's length."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def assert_pictures(batch: Any) -> None:
    assert batch[0].ndim == 4, "these are cached features"


class OwnForward(LitTransfer):
    def forward(self, x: Tensor) -> Tensor:
        assert_pictures([x])
        return super().forward(x)


class OwnTrainingStep(LitTransfer):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert_pictures(batch)
        return super().training_step(batch, batch_idx)


class OwnBatchHook(LitTransfer):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert_pictures(batch)


class OwnTransfer(datamodules.ImageFolderDataModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert_pictures(batch)
        return batch


class LooksAtBatches(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert_pictures(batch)


class OwnOptimizer(LitTransfer):
    """Needs no pictures: the features stay cached."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), 0.01)
