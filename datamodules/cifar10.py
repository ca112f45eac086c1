"""Load CIFAR10 with torchvision."""

import contextlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from datamodules.errors import DataError
from datamodules.loading.augmentation import FLIP_SHIFT_CUTOUT, read_names
from datamodules.loading.memory import Pictures
from datamodules.loading.module import SplitDataModule
from datamodules.loading.seeds import combine_seeds
from datamodules.preprocessing import Preprocessing

TRAIN_SIZE = 50_000


class CIFAR10DataModule(SplitDataModule):
    """The 60,000 pictures of CIFAR-10 (Krizhevsky 2009), as in the PyTorch tutorial "Training a Classifier".

    The validation pictures are chosen at random from the 50,000 training pictures, stratified by class. The data set is
    downloaded if it is not in ``root``. Its files are pickles, which can run code, so their md5 is checked first.

    Args:
        root: folder of the data set.
        batch_size: pictures per step and device.
        val_size: number of training pictures to use for validation instead. With 0 there is no validation.
        augment: True (flip, shift and cutout of training pictures), or some of ``crop,flip,rotate,color,trivial``.
        seed: seed of the validation split, the order and the augmentation.
        on_device: keep the pictures on the GPU: True, False, or ``auto``, if a quarter of its free memory is enough.

    Batches: (B, 3, 32, 32) float32 in [-1, 1] and (B,) int64.
    """

    task = "classification"
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    num_classes = 10
    in_channels = 3
    sample_shape = (3, 32, 32)
    preprocessing = Preprocessing(32, 32, [0.5] * 3, [0.5] * 3)  # pixels in [-1, 1], as in the tutorial
    eval_batch_size = 500

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 4,
        val_size: int = 5000,
        augment: bool | list[str] | str = False,
        seed: int = 0,
        on_device: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, but is {batch_size}: --data.batch_size 4")
        if not 0 <= val_size < TRAIN_SIZE:
            raise DataError(f"val_size must be between 0 and {TRAIN_SIZE - 1}, but is {val_size}: --data.val_size 5000")
        root = str(root)  # torch.load(weights_only=True) rejects a checkpoint with a Path
        self.augment = read_names(augment, FLIP_SHIFT_CUTOUT)
        self.save_hyperparameters()
        self.root = Path(root).expanduser()
        self.sets = {}

    def report(self) -> str:
        is_here = any((self.root / name).exists() for name in (CIFAR10.base_folder, CIFAR10.filename))
        return "" if is_here else f"downloading CIFAR10 (162 MB) from {CIFAR10.url}: it can take an hour"

    def prepare_data(self) -> None:
        """Download the data set if it is missing, and check its md5."""
        try:
            (root := self.root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{root} cannot be written ({error.strerror})"
            raise DataError(f"{problem}: free disk space, or give another folder with --data.root") from error
        try:
            CIFAR10(str(root), download=True)
        except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for a wrong md5
            with contextlib.suppress(OSError):
                root.rmdir()  # fails if the folder is not empty
            raise DataError(
                f"CIFAR10 is not in {root} and {CIFAR10.url} cannot be read ({error}): put {CIFAR10.filename} (md5 "
                f"{CIFAR10.tgz_md5}) into {root}, give its folder with --data.root, or use --data ShapesDataModule"
            ) from error

    def setup(self, stage: str) -> None:
        seed = self.hparams["seed"]
        if stage in ("fit", "validate") and "train" not in self.sets:
            images, labels = self._read(train=True)
            val = choose_stratified(labels, self.hparams["val_size"], seed)
            is_train = torch.ones(TRAIN_SIZE, dtype=torch.bool)
            is_train[val] = False
            self.sets["train"] = Pictures(images[is_train], labels[is_train], self.preprocessing, self.augment, seed)
            self.sets["val"] = Pictures(images[val], labels[val], self.preprocessing)
        if stage in ("test", "predict") and "test" not in self.sets:
            self.sets["test"] = Pictures(*self._read(train=False), self.preprocessing)

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return pictures (N, 3, 32, 32) uint8 and labels (N,) int64."""
        official = CIFAR10(str(self.root), train)
        return torch.from_numpy(official.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(official.targets)


def choose_stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose ``count`` random samples, stratified by class. Return their indices in ascending order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(combine_seeds(seed)))
    by_class = order[labels[order].argsort(stable=True)]
    # by_class is sorted by class, so evenly spaced positions choose the same fraction of each class
    positions = (torch.arange(count) * len(labels) + len(labels) // 2) // max(count, 1)
    return by_class[positions].sort().values
