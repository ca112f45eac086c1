"""The base class of the data modules."""

from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.loading.loader import make_loader


class SplitDataModule(LightningDataModule):
    """A data module with one dataset for each split.

    A subclass has the arguments ``batch_size`` and ``seed`` and calls ``save_hyperparameters``. Its ``setup`` fills
    ``sets`` with datasets whose ``__getitems__(keys)`` returns a batch. A data module without this base class gets
    the default attributes in lit_training/runs/own_classes.py.
    """

    task: Literal["classification", "regression"] | None = None
    default_model = "LitCNN"  # the model of a command without --model
    class_names: Any = ()  # in the order of the labels; empty for regression
    sample_shape: Any = None  # (C, H, W) or (F,)
    preprocessing: Any = None  # a Preprocessing, or None if the samples are not pictures
    class_weights: Tensor | None = None  # (K,) float32, for the training loss
    photos: Any = None  # a Photos (datamodules/photos/folder.py), or None
    augment: tuple[str, ...] = ()  # names of the augmentations of the training pictures, such as flip
    eval_batch_size = 100  # if batch_size is larger, evaluations use batch_size
    predict_split = "test"
    shuffle = True
    trains_on_all = False  # True with fit.py --folds: the pictures of val are trained on too
    sets: dict[str, Dataset]  # by split: train, val and test

    def adapt_to(self, model: Any) -> None:
        """Use settings of the model, such as its ``preprocessing``. The base class uses none."""

    def report(self) -> str:
        """Return a text to print before training."""
        return ""

    def dataset(self, split: str) -> Dataset:
        """Return the dataset of ``train``, ``val`` or ``test``; call ``setup`` first."""
        return self.sets[split]

    def num_workers(self, dataset: Dataset) -> int:
        """Return the number of loader processes. The base class uses 0, which is best for data in memory."""
        return 0

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._loader("val") if len(self.dataset("val")) else []  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict_split)

    def _loader(self, split: str) -> DataLoader:
        train, dataset = split == "train", self.dataset(split)
        batch_size = self.hparams["batch_size"]
        return make_loader(
            dataset,
            self.trainer,
            batch_size=batch_size if train else max(self.eval_batch_size, batch_size),
            seed=self.hparams["seed"],
            train=train,
            shuffle=self.shuffle,
            num_workers=self.num_workers(dataset),
            on_device=self.hparams.get("on_device", "auto"),
        )
