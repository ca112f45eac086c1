"""A folder of photos with one subfolder per class."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datamodules.errors import DataError
from datamodules.loading.loader import count_decoding_workers
from datamodules.loading.memory import Pictures
from datamodules.loading.module import SplitDataModule
from datamodules.photos.dataset import PhotoFiles, read_pixels
from datamodules.photos.find import SPLITS, TEST, TRAIN, find_class_names
from datamodules.photos.folder import Photos, examine
from datamodules.photos.paths import Paths
from datamodules.photos.split import read_split_file
from datamodules.photos.store import PictureStore, store_path
from datamodules.photos.transforms import eval_transform
from datamodules.preprocessing import Preprocessing

SMALL = 64
"""Largest image_size, in pixels, for which all pictures are kept in memory."""


class ImageFolderDataModule(SplitDataModule):
    """Photos in ``root/train/<class>/...`` and ``root/val/<class>/...``, or in ``root/<class>/...``.

    Size, mean, std and interpolation are those of the model's ``preprocessing``. The default is that of the PyTorch
    tutorial "Transfer Learning for Computer Vision" (224 pixels, ImageNet's mean and std). If ``image_size`` is at
    most 64, all pictures are decoded once and kept in memory as uint8.

    Args:
        root: the folder. It contains ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/``, or the classes.
        batch_size: pictures per step and device.
        image_size: height and width of the network's input in pixels; if not given, the model's.
        augment: use random crops and flips (small pictures: flip, shift, cutout); if not given, the model decides.
        val_size: fraction of the training pictures that becomes the validation set if the folder has no ``val/``.
        split_file: a ``split.csv`` of an earlier run, to use the same split.
        balance: ``loss`` weights each class by the inverse of its frequency in the training loss.
        max_bad_fraction: largest fraction of broken files that is accepted; they are left out.
        cache: keep the decoded pictures, resized to ``resize_size``, in a memory-mapped file, so that only the first
            epoch decodes. Random crops are then taken from the resized picture, so small crops are less sharp.
        num_workers: processes that load pictures; if not given, it depends on the number of cores.
        seed: of the split, the order and the augmentation.

    Batches: (B, 3, S, S) float32 and (B,) int64.

    Raises:
        DataError: an argument is out of range, or the folder cannot be used for training.
    """

    task = "classification"
    default_model = "LitTransfer"
    in_channels = 3
    eval_batch_size = 32
    predict_split = "val"

    def __init__(
        self,
        root: str,
        batch_size: int = 4,
        image_size: int | None = None,
        augment: bool | None = None,
        val_size: float = 0.2,
        split_file: str | None = None,
        balance: Literal["none", "loss"] = "none",
        max_bad_fraction: float = 0.05,
        cache: bool = False,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (image_size is not None and image_size < 1):
            raise DataError("batch_size and image_size must be at least 1: --data.batch_size 4 --data.image_size 224")
        if balance not in ("none", "loss"):
            raise DataError(f"balance must be none or loss, but is {balance}: --data.balance loss")
        root, split_file = str(root), split_file and str(split_file)  # a Path cannot be read from a checkpoint safely
        self.save_hyperparameters()
        self.root = Path(root).expanduser()
        self.adapt_to(None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that have training pictures, sorted. Opens no picture."""
        if self.photos:
            return self.photos.class_names
        split_file = self.hparams["split_file"]
        if split_file is None:
            return find_class_names(self.root)
        return tuple(sorted({label for _, label, split in read_split_file(split_file) if split == TRAIN}))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return (3, self.preprocessing.image_size, self.preprocessing.image_size)

    @property
    def has_test(self) -> bool:
        """True if the folder has test pictures. Call ``setup`` first."""
        return self.photos is not None and bool((self.photos.splits == TEST).any())

    def report(self) -> str:
        return self.examine().report()

    def adapt_to(self, model: Any) -> None:
        before = self.preprocessing, self.augment
        spec = Preprocessing.from_dict(getattr(model, "preprocessing", None))
        self.preprocessing = spec.at_size(self.hparams["image_size"])
        augment = self.hparams["augment"]
        self.augment = getattr(model, "wants_augmentation", True) if augment is None else augment
        if (self.preprocessing, self.augment) != before:
            self.sets = {}  # the old ones were prepared for another model

    def prepare_data(self) -> None:
        self.examine()  # one process per machine decodes the pictures and remembers the results for the others
        if self.preprocessing.image_size <= SMALL or self.hparams["cache"]:
            for split in ("train", "val"):
                self.dataset(split)

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.adapt_to(self.trainer.lightning_module)
        self.examine()

    def examine(self) -> Photos:
        """Decode every picture, leave out the broken ones and split the others, the first time it is called."""
        if self.photos is None:
            settings = {name: self.hparams[name] for name in ("val_size", "seed", "split_file", "max_bad_fraction")}
            self.photos = examine(self.root, **settings)
            if self.hparams["balance"] == "loss":
                counts = torch.from_numpy(self.photos.counts()[TRAIN]).float()
                self.class_weights = counts.sum() / (len(counts) * counts)
        return self.photos

    def dataset(self, split: str) -> Dataset:
        if split not in self.sets:
            photos = self.examine()
            chosen = photos.select(SPLITS.index(split))
            paths, labels = photos.paths.take(chosen), torch.from_numpy(photos.labels[chosen]).long()
            augment, seed, spec = self.augment and split == "train", self.hparams["seed"], self.preprocessing
            small = spec.image_size <= SMALL
            store = self._store(paths, small) if len(paths) and (small or self.hparams["cache"]) else None
            if store and small:
                self.sets[split] = Pictures(store.stacked(), labels, spec, augment, seed)
            else:
                self.sets[split] = PhotoFiles(self.root, paths, labels, spec, augment, seed, store)
        return self.sets[split]

    def _store(self, paths: Paths, whole: bool) -> PictureStore:
        """Return these pictures decoded and resized, and also cropped if ``whole``."""
        spec = self.preprocessing
        sizes = {key: getattr(spec, key) for key in ("image_size", "resize_size", "interpolation")}
        path = store_path(self.root, paths, {**sizes, "whole": whole})
        if not path.is_file():
            transform = eval_transform(spec) if whole else v2.Compose(eval_transform(spec).transforms[:2])
            PictureStore.write(path, len(paths), lambda index: transform(read_pixels(self.root / paths[index])))
        return PictureStore(path)

    def num_workers(self, dataset: Dataset) -> int:
        if not isinstance(dataset, PhotoFiles):
            return 0
        chosen = self.hparams["num_workers"]
        return count_decoding_workers(self.trainer) if chosen is None else chosen
