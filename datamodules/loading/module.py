"""The base class of the data modules."""

from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.loading.loader import make_loader


class SplitDataModule(LightningDataModule):
    """A data module with one dataset per split in ``sets``.

    A subclass has the arguments ``batch_size`` and ``seed`` and calls ``save_hyperparameters``. Its ``setup`` creates
    the datasets, whose ``__getitems__(keys)`` returns a batch. Data modules with another base class do not need the
    attributes below: lit_training/runs/foreign.py has defaults for them.
    """

    task: Literal["classification", "regression"] | None = None
    default_model = "LitCNN"
    """Name of the model that ``scripts/fit.py`` uses without ``--model``."""
    class_names: Any = ()
    """Class names in the order of the labels; empty for regression."""
    sample_shape: Any = None
    """Shape of one sample, (C, H, W) or (F,)."""
    preprocessing: Any = None
    """The :class:`~datamodules.preprocessing.Preprocessing` of the pictures; None if the samples are not pictures."""
    class_weights: Tensor | None = None
    """(K,) float32, weight of each class in the training loss."""
    photos: Any = None
    """The :class:`~datamodules.photos.folder.Photos` of a folder of photos; None for other data."""
    augment = False
    """True if training samples are augmented."""
    eval_batch_size = 100
    """Batch size of validation, test and prediction, unless ``batch_size`` is larger."""
    predict_split = "test"
    """Split that ``predict_dataloader`` loads."""
    shuffle = True
    """True if the training samples are shuffled in each epoch."""
    sets: dict[str, Dataset]
    """Datasets by split: ``train``, ``val`` and ``test``."""

    def adapt_to(self, model: Any) -> None:
        """Use the settings of ``model`` for the data, such as its ``preprocessing``. The default does nothing.

        It is called after the model and the data module are built.
        """

    def report(self) -> str:
        """Return a text about the data, which is printed before training."""
        return ""

    def dataset(self, split: str) -> Dataset:
        """Return the dataset of ``train``, ``val`` or ``test``; call ``setup`` first."""
        return self.sets[split]

    def num_workers(self, dataset: Dataset) -> int:
        """Return the number of loader processes for ``dataset``. The default is 0, for data in memory."""
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
        )
