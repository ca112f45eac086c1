"""Load photos from a folder with one subfolder per class."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datamodules.errors import DataError
from datamodules.loading.augmentation import CROP_FLIP, FLIP_SHIFT_CUTOUT, read_names
from datamodules.loading.loader import count_decoding_workers
from datamodules.loading.memory import Pictures
from datamodules.loading.module import SplitDataModule
from datamodules.photos.dataset import PhotoFiles, eval_transform, read_pixels
from datamodules.photos.find import SPLITS, TRAIN, VAL, find_photos
from datamodules.photos.folder import Photos, examine
from datamodules.photos.near import GROUPS
from datamodules.photos.split import check_pattern, read_split_file, trained_classes
from datamodules.photos.store import PictureStore, store_path
from datamodules.preprocessing import Preprocessing

MAX_IMAGE_SIZE_IN_MEMORY = 64  # pixels; all pictures are kept in memory if image_size is at most this


class ImageFolderDataModule(SplitDataModule):
    """A data module for photos in ``root/train/<class>/`` and ``root/val/<class>/``, or in ``root/<class>/``.

    The model's ``preprocessing`` sets image size, mean, std and interpolation. A model without ``preprocessing`` gets
    224 pixels and ImageNet's mean and std, as in the PyTorch tutorial "Transfer Learning for Computer Vision". If
    ``image_size`` is at most 64, all pictures are decoded once and kept in memory as uint8.

    Args:
        root: folder with class folders, or with ``train/``, optional ``val/`` (``valid/``, ``validation/``), ``test/``.
        batch_size: pictures per step and device. Default: the model's ``default_batch_size``, 4 if it has none.
        image_size: height and width of the network's input in pixels. Default: from the model's ``preprocessing``.
        resize: how a picture becomes square: ``crop`` keeps its center, ``pad`` adds borders of the mean color to the
            whole picture, ``squash`` changes its aspect ratio. Default: that of the model's ``preprocessing``, or crop.
        augment: change training pictures at random: True, False, or some of ``crop,flip,rotate,color,trivial``. True is
            ``crop,flip``, or, if ``image_size`` is at most 64, flips, shifts and cutout. Default: the model's
            ``wants_augmentation``, True if it has none.
        val_size: if there is no ``val/``, this fraction of the training pictures of each class is used for validation.
        split_file: the ``split.csv`` of an earlier run, to use the same split.
        fixes: a ``fixes.csv`` of ``check.py --labels``, edited: which labels to change and which pictures to leave out.
        group: the pictures that a split keeps together: ``near``: copies and near duplicates (other sizes, crops,
            turns, frames of a burst), ``exact``: only copies of a file, ``none``.
        group_by: a regular expression. Pictures in whose path it finds the same text (its group 1, or the whole match)
            also stay together, for example ``patient[0-9]+``.
        balance: ``loss`` weights each class in the training loss by the inverse of its frequency; ``none`` does not.
        max_bad_fraction: files that cannot be read are left out, but a larger fraction of them is an error. For one
            class, the limit is at least 0.5.
        cache: decode the pictures only once: store them, resized to ``resize_size``, in a memory-mapped file. Small
            random crops are then less sharp.
        num_workers: number of processes that load pictures. Default: depends on the number of cores.
        seed: seed of the split, the order and the augmentation.
        layout: what the folders in ``root`` are: ``classes`` or ``split``. Default: their names decide.
        on_device: keep pictures on the GPU (with ``cache`` or a small ``image_size``): True, False, or ``auto``, if a
            quarter of its free memory is enough.

    Batches: images (B, 3, S, S) float32 and labels (B,) int64.
    """

    task = "classification"
    default_model = "LitTransfer"
    in_channels = 3
    eval_batch_size = 32
    predict_split = "val"
    began: str | None = None  # the split.csv of a resumed run

    def __init__(
        self,
        root: str,
        batch_size: int | None = None,
        image_size: int | None = None,
        augment: bool | list[str] | str | None = None,
        val_size: float = 0.2,
        split_file: str | None = None,
        balance: Literal["none", "loss"] = "none",
        max_bad_fraction: float = 0.05,
        cache: bool = False,
        num_workers: int | None = None,
        seed: int = 0,
        resize: Literal["crop", "pad", "squash"] | None = None,
        layout: Literal["classes", "split"] | None = None,
        on_device: bool | Literal["auto"] = "auto",
        fixes: str | None = None,
        group: Literal["near", "exact", "none"] = "near",
        group_by: str | None = None,
    ) -> None:
        super().__init__()
        if min(size for size in (batch_size, image_size, 1) if size is not None) < 1:
            raise DataError("batch_size and image_size must be at least 1: --data.batch_size 4 --data.image_size 224")
        if balance not in ("none", "loss"):
            raise DataError(f"balance must be none or loss, but is {balance}: --data.balance loss")
        if layout not in (None, "classes", "split"):
            raise DataError(f"layout must be classes or split, but is {layout}: --data.layout classes")
        if group not in GROUPS:
            raise DataError(f"group must be near, exact or none, but is {group}: --data.group near")
        check_pattern(group_by)
        # torch.load(weights_only=True) rejects a Path
        root, split_file, fixes = str(root), split_file and str(split_file), fixes and str(fixes)
        self.save_hyperparameters()
        self.root = Path(root).expanduser()
        self.adapt_to(None)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The sorted names of the classes with training pictures. Reading them opens no picture."""
        split_file = self.hparams["split_file"]
        if split_file is None:
            return find_photos(self.root, self.hparams["layout"]).class_names
        return tuple(sorted(trained_classes(read_split_file(split_file))))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return (3, self.preprocessing.image_size, self.preprocessing.image_size)

    def report(self) -> str:
        return self.examine().report()

    def adapt_to(self, model: Any) -> None:
        if self.hparams_initial["batch_size"] is None:
            self.hparams["batch_size"] = getattr(model, "default_batch_size", 4)
        before = self.preprocessing, self.augment
        spec = Preprocessing.from_dict(getattr(model, "preprocessing", None))
        spec = replace(spec, resize=self.hparams["resize"] or spec.resize)
        self.preprocessing = spec.at_size(self.hparams["image_size"])
        augment = self.hparams["augment"]
        augment = getattr(model, "wants_augmentation", True) if augment is None else augment
        self.in_memory = self.preprocessing.image_size <= MAX_IMAGE_SIZE_IN_MEMORY
        self.augment = read_names(augment, FLIP_SHIFT_CUTOUT if self.in_memory else CROP_FLIP)
        if (self.preprocessing, self.augment) != before:
            self.sets = {}  # the existing datasets use the old settings

    def prepare_data(self) -> None:
        self.examine()  # this runs in one process per machine; the others use its cached results
        if self.in_memory or self.hparams["cache"]:
            for split in ("train", "val"):
                self.dataset(split)

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.adapt_to(self.trainer.lightning_module)
        photos = self.examine()
        if stage == "fit" and self.trainer and self.trainer.limit_val_batches and not len(photos.select(VAL)):
            fix = "put at least two different pictures into the folder of each class, or train without validation"
            raise DataError(f"no picture is left for validation: {fix}: --limit_val_batches 0")

    def examine(self, progress: Callable[[int, int], None] | None = None) -> Photos:
        """Decode every picture, leave out the broken ones and split the others. Later calls return the same result."""
        if self.photos is None:
            names = ("val_size", "seed", "split_file", "fixes", "max_bad_fraction", "layout", "group", "group_by")
            settings = {name: self.hparams[name] for name in names}
            settings["val_size"] = None if self.trains_on_all else settings["val_size"]
            settings |= {"resize": self.preprocessing.resize, "began": self.began}
            self.photos = examine(self.root, **settings, progress=progress)
            self.class_names = self.photos.class_names
            if self.hparams["balance"] == "loss":
                counts = torch.from_numpy(self.photos.counts()[TRAIN]).float()
                self.class_weights = counts.sum() / (len(counts) * counts)
        return self.photos

    def dataset(self, split: str) -> Dataset:
        if split not in self.sets:
            photos = self.examine()
            rows = photos.select(SPLITS.index(split))
            paths, labels = photos.paths[rows], torch.from_numpy(photos.labels[rows]).long()
            augment, seed, spec = self.augment if split == "train" else (), self.hparams["seed"], self.preprocessing
            store = self._open_store(paths) if len(paths) and (self.in_memory or self.hparams["cache"]) else None
            if store and self.in_memory:
                self.sets[split] = Pictures(store.stacked(), labels, spec, augment, seed)
            else:
                self.sets[split] = PhotoFiles(self.root, paths, labels, spec, augment, seed, store)
        return self.sets[split]

    def _open_store(self, paths: np.ndarray) -> PictureStore:
        """Open the file of these decoded pictures, resized, and cropped if ``in_memory``. Write a missing file."""
        spec = self.preprocessing
        path = store_path(self.root, paths, {**spec.to_dict(), "whole": self.in_memory})
        if not path.is_file():
            transform = eval_transform(spec) if self.in_memory else v2.Compose(eval_transform(spec).transforms[:2])
            PictureStore.write(path, len(paths), lambda index: transform(read_pixels(self.root / paths[index])))
        return PictureStore(path)

    def num_workers(self, dataset: Dataset) -> int:
        given = self.hparams["num_workers"] if isinstance(dataset, PhotoFiles) else 0
        return count_decoding_workers(self.trainer) if given is None else given
