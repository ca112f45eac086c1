"""What the data modules share: their loaders."""

from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.loading.loader import make_loader


class SplitDataModule(LightningDataModule):
    """The four loaders of a data module that has ``batch_size`` and ``seed`` and its splits in ``sets``.

    A run also asks for what stands here with a default: ``task``, ``class_names`` and so on. A data module of your own
    need not have them (lit_training/runs/foreign.py).
    """

    task: Literal["classification", "regression"] | None = None
    default_model = "LitCNN"
    """Name of the model that ``scripts/fit.py`` takes when none is named."""
    class_names: Any = ()
    """Names of the classes, in the order of their numbers; empty for regression."""
    sample_shape: Any = None
    """Shape of one sample, (C, H, W) or (F,), without a batch dimension."""
    preprocessing: Any = None
    """The :class:`~datamodules.preprocessing.Preprocessing` of its pictures; None where samples are no pictures."""
    class_weights: Tensor | None = None
    """(K,) float32, weights of the classes in the training loss."""
    photos: Any = None
    """The :class:`~datamodules.photos.folder.Photos` that were found; None for other data."""
    augment = False
    """Whether a training sample looks different in each epoch."""
    eval_batch_size = 100
    """Rows of an evaluation's batch, where ``batch_size`` is not more."""
    predict_split = "test"
    shuffle = True
    sets: dict[str, Dataset]

    def follow(self, model: Any) -> None:
        """Take over what the model asks of its data; called when both have been built."""

    def report(self) -> str:
        """Lines about the data that are printed before training."""
        return ""

    def dataset(self, split: str) -> Dataset:
        """The samples of ``train``, ``val`` or ``test``; known after ``setup``."""
        return self.sets[split]

    def num_workers(self, dataset: Dataset) -> int:
        """Processes that load ``dataset``: none for what is in memory."""
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
