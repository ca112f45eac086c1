"""CIFAR10 as torchvision gives it, kept as bytes that all processes of a machine share."""

import contextlib
import tempfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.loading.memory import Pictures
from datamodules.loading.module import SplitDataModule
from datamodules.loading.seeds import mix
from datamodules.preprocessing import Preprocessing

PIXELS = 3 * 32 * 32
TRAIN, TEST = 50_000, 10_000
HALF = [0.5, 0.5, 0.5]


class CIFAR10DataModule(SplitDataModule):
    """The 60,000 pictures of CIFAR-10 (Krizhevsky 2009), as in the PyTorch tutorial "Training a Classifier".

    Validation is cut from the 50,000 training pictures, in equal shares of the classes; the official 10,000 test
    pictures are for testing and nothing else. What is already under ``root`` is used, else downloaded. Only files
    with the official md5 are opened, for they are pickles.

    Args:
        root: folder of the data set.
        batch_size: pictures per step and device.
        val_size: pictures cut from training for validation; 0 trains on all 50,000 and validates on nothing.
        augment: flip, shift and cut out the training pictures.
        seed: of the split, the order and the augmentation.

    Batches: (B, 3, 32, 32) float32 in [-1, 1] and (B,) int64.

    Raises:
        DataError: an argument out of its range; no network and no data.
    """

    task = "classification"
    default_model = "LitCNN"
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    num_classes = 10
    in_channels = 3
    sample_shape = (3, 32, 32)
    preprocessing = Preprocessing(32, 32, HALF, HALF)  # the tutorial's: pixels in [-1, 1]
    eval_batch_size = 500

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 4,
        val_size: int = 5000,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"a batch holds at least one picture, not {batch_size}: --data.batch_size 4")
        if not 0 <= val_size < TRAIN:
            raise DataError(f"val_size lies between 0 and {TRAIN - 1}, not at {val_size}: --data.val_size 5000")
        self.save_hyperparameters()
        self.sets = {}

    def prepare_data(self) -> None:
        root = Path(self.hparams["root"]).expanduser()
        if all(_bytes_file(root, train).is_file() for train in (True, False)):
            return
        official = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
        try:
            if not all(check_integrity(root / CIFAR10.base_folder / name, md5) for name, md5 in official):
                _fetch(root)
            for train in (True, False):
                _write_bytes(CIFAR10(str(root), train=train), _bytes_file(root, train))
        except OSError as error:
            raise DataError(
                f"{root} cannot be written ({error.strerror}): make room there, or name another folder with --data.root"
            ) from error

    def setup(self, stage: str) -> None:
        root, seed = Path(self.hparams["root"]).expanduser(), self.hparams["seed"]
        if stage in ("fit", "validate") and "train" not in self.sets:
            images, labels = _read_bytes(_bytes_file(root, True), TRAIN)
            val = stratified(labels, self.hparams["val_size"], seed)
            kept = torch.ones(TRAIN, dtype=torch.bool)
            kept[val] = False
            augment, train = self.hparams["augment"], kept.nonzero().flatten()
            self.sets["train"] = Pictures(images, labels, self.preprocessing, augment, seed, train)
            self.sets["val"] = Pictures(images, labels, self.preprocessing, indices=val)
        if stage in ("test", "predict") and "test" not in self.sets:
            self.sets["test"] = Pictures(*_read_bytes(_bytes_file(root, False), TEST), self.preprocessing)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """``count`` indices, sorted, the classes in the shares that they have in ``labels`` (to the last picture)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(mix(seed)))
    by_class = order[labels[order].argsort(stable=True)]
    # Every n-th of the shuffled pictures, class after class: exact shares without rounding class by class.
    places = (torch.arange(count) * len(labels) + len(labels) // 2) // max(count, 1)
    return by_class[places].sort().values


def _fetch(root: Path) -> None:
    """Download into a folder beside the target and move the checked archive: no half file is ever taken for whole."""
    archive = root / CIFAR10.filename
    if not check_integrity(archive, CIFAR10.tgz_md5):
        root.mkdir(parents=True, exist_ok=True)
        print(f"downloading CIFAR10 (162 MB) from {CIFAR10.url}; the host is slow since 2026: up to an hour")
        try:
            with tempfile.TemporaryDirectory(dir=root) as part:
                download_url(CIFAR10.url, part, CIFAR10.filename, CIFAR10.tgz_md5)
                (Path(part) / CIFAR10.filename).replace(archive)
        except (URLError, OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):  # unless there is something in it
                root.rmdir()
            raise DataError(
                f"CIFAR10 is not under {root} and {CIFAR10.url} cannot be read ({error}): put {CIFAR10.filename} (md5 "
                f"{CIFAR10.tgz_md5}) into {root}, name its folder with --data.root, or run --data ShapesDataModule"
            ) from error
    extract_archive(str(archive), str(root))


def _bytes_file(root: Path, train: bool) -> Path:
    return root / f"cifar10-{'train' if train else 'test'}.uint8"


def _write_bytes(official: CIFAR10, path: Path) -> None:
    with atomic_write(path) as file:
        for start in range(0, len(official.data), 1000):  # in parts: a second copy of the data is never in memory
            file.write(np.ascontiguousarray(official.data[start : start + 1000].transpose(0, 3, 1, 2)).tobytes())
        file.write(np.asarray(official.targets, dtype=np.uint8).tobytes())


def _read_bytes(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """Map the pictures into memory: the processes of a machine share one copy."""
    size = count * (PIXELS + 1)
    if not path.is_file() or path.stat().st_size != size:
        raise DataError(f"{path} is not whole: delete it and run again")
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return data[: count * PIXELS].view(count, 3, 32, 32), data[count * PIXELS :].long()
