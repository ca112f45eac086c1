"""Models and data modules as researchers write them. A test copies this file next to my_model.py and my_data.py."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from my_data import Halves  # type: ignore[import-not-found]
from my_model import Wide  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import datamodules
import lit_models
from lit_models import LitBase


class LitCNN(lit_models.LitCNN):
    """Has the name of a class of the project, but other outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class ShapesDataModule(Halves):
    """Has the name of a class of the project, but other data."""


class Fixed(lit_models.LitCNN):
    """Gives an argument to its base class that its own constructor does not take."""

    def __init__(self, lr: float = 0.05, **others: Any) -> None:
        super().__init__(in_channels=3, lr=lr, **others)


class Unsaved(LitBase):
    """Saves no hyper-parameters, has no ``net``, and has hooks without a call of super."""

    def __init__(self, slope: float = 1.0, sizes: tuple[int, ...] = (8,)) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3072, sizes[0]), nn.LeakyReLU(slope))
        self.head = nn.Linear(sizes[0], 2)
        self.make_metrics(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 3

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["mine"] == 3


class Outer:
    """Holds a model."""

    class Net(Wide):
        """Is found by its dotted path."""

        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)


def make_class() -> Any:
    """Return a class that has no dotted path."""

    class Local(Wide):
        pass

    return Local


Local = make_class()


class Named(Wide):
    """Takes all settings in one dictionary."""

    def __init__(self, settings: dict) -> None:
        super().__init__(num_classes=2, width=settings["width"])
        self.save_hyperparameters(settings)


class Options(Unsaved):
    """Takes any argument."""

    def __init__(self, **options: Any) -> None:
        super().__init__(sizes=(options.get("width", 4),))
        self.scale = options.get("scale", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


class Split(LightningDataModule):
    """Draws its split without a seed, saves no hyper-parameters, and changes the batches on the device."""

    def __init__(self, size: int = 20, shift: float = 0.0) -> None:
        super().__init__()
        self.size, self.shift = size, shift

    def setup(self, stage: str) -> None:
        if stage == "fit":
            labels = torch.arange(100) % 2
            images = torch.rand(100, 3, 32, 32) + 0.02 * labels[:, None, None, None]
            self.train, self.val = random_split(TensorDataset(images, labels), [0.7, 0.3])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, self.size, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.val, self.size)]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0] + self.shift) * 2, batch[1]


class Tested(Halves):
    """Has test data, of the same labels with each ``fold``."""

    val: Any

    def __init__(self, batch_size: int = 20, fold: int = 0) -> None:
        super().__init__(batch_size)
        self.fold = fold

    def setup(self, stage: str) -> None:
        super().setup(stage)
        labels = torch.arange(40) % 2
        images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(self.fold)) / 2
        self.test = TensorDataset(images + 0.01 * labels[:, None, None, None], labels)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, 20)


class TwoLoaders(Tested):
    """Has two sets of test data."""

    def test_dataloader(self) -> Any:
        return [DataLoader(self.val, 20), DataLoader(self.test, 20)]


class Rows(LitBase):
    """Learns a sum."""

    task = "regression"
    sample_ndim = 1

    def __init__(self, in_features: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(in_features, 1)
        self.make_metrics()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class RowData(LightningDataModule):
    """Rows of four numbers."""

    in_features = 4

    def train_dataloader(self) -> Any:
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8)

    val_dataloader = train_dataloader


class Photos(datamodules.ImageFolderDataModule):
    """Photos of 32 x 32 pixels."""

    def __init__(self, root: str) -> None:
        super().__init__(root, image_size=32, batch_size=8)


class Foreign(LightningModule):
    """Is not built on LitBase."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class OwnTest(Wide):
    """Its test returns nothing."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_x", 1.0)
