"""Models, data and callbacks for the matrix of Lightning's parts. A test copies this file into the run's folder."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lit_models import LitBase


class Rows(LightningDataModule):
    """24 rows of 8 numbers for training, 8 for validation; the class is the sign of the first number."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def loader(self, count: int, seed: int, shuffle: bool = False) -> DataLoader:
        x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), self.hparams["batch_size"], shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self.loader(24, 0, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(8, 1)


class Redrawn(Rows):
    """Other rows each time when the loader is made."""

    def train_dataloader(self) -> DataLoader:
        print("draws rows")
        rows: Any = self.loader(48, 0).dataset
        return DataLoader(Subset(rows, random.sample(range(48), 24)), self.hparams["batch_size"], shuffle=True)


class Net(LightningModule):
    """A plain LightningModule with dropout."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> Any:
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        return torch.optim.SGD(trained, self.hparams["lr"], momentum=0.9)


class Classifier(LitBase):
    """The same network on LitBase."""

    sample_ndim = 1

    def __init__(self, in_features: int = 8, num_classes: int = 2, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(in_features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))
        self.make_metrics(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self) -> Any:
        return self.build_optimizers(lambda groups: torch.optim.Adam(groups, self.hparams["lr"]), self.parameters())


class LBFGS(Net):
    """It computes the loss several times a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Plateau(Net):
    """Its schedule needs a metric that its steps do not log."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_accuracy"}}


class BySteps(Net):
    """The learning rate falls after each step, as the run's length says."""

    def configure_optimizers(self) -> Any:
        optimizer, steps = super().configure_optimizers(), self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def say(trainer: Any, model: Any) -> None:
    print(f"epoch {trainer.current_epoch} begins")


def size(batch: Any) -> int:
    return len(batch[0])


class Settings(Callback):
    """Prints settings of Lightning as the steps see them, and the sizes of gradients and data that they got."""

    def __init__(self) -> None:
        self.largest, self.inference, self.first = 0.0, False, list[int]()

    def on_validation_batch_start(self, *_: Any) -> None:
        self.inference = torch.is_inference_mode_enabled()

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_idx: int) -> None:
        self.first += [int(batch[0].sum() * 1000)] * (batch_idx == 0)

    def on_before_zero_grad(self, trainer: Any, model: Any, optimizer: Any) -> None:
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        if gradients:
            self.largest = max(self.largest, float(torch.cat([one.flatten().float() for one in gradients]).norm()))

    def on_train_batch_end(self, trainer: Any, model: Any, *_: Any) -> None:
        self.seen = {
            "anomaly": torch.is_anomaly_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
            "strategy": type(trainer.strategy).__name__,
            "precision": type(trainer.precision_plugin).__name__,
            "environment": type(getattr(trainer.strategy, "cluster_environment", None)).__name__,
            "loggers": [type(logger).__name__ for logger in trainer.loggers],
            "logger": type(model.logger).__name__,
        }

    def on_train_end(self, trainer: Any, model: Any) -> None:
        own = {"largest": self.largest, "inference": self.inference, "first": self.first}
        if trainer.is_global_zero:
            print(f"settings {self.seen | own}")
