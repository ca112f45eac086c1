# my_data.py
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset, random_split


class Halves(LightningDataModule):
    """Noise of 32 x 32 pixels. One half of each image is a little brighter; its name is the class."""

    class_names = ("left", "right")
    num_classes = 2
    sample_shape = (3, 32, 32)

    def __init__(self, batch_size: int = 20) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.preprocessing = {"image_size": 32, "resize_size": 32, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}

    def setup(self, stage: str) -> None:
        generator, labels = torch.Generator().manual_seed(0), torch.arange(300) % 2
        images = torch.rand(300, 3, 32, 32, generator=generator) / 2
        images[labels == 0, :, :, :16] += 0.05
        images[labels == 1, :, :, 16:] += 0.05
        self.train, self.val = random_split(TensorDataset(images, labels), [200, 100], generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.hparams["batch_size"], shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.hparams["batch_size"])
